// Package api serves a standalone node's objects as a Kubernetes API server serves them, so that kubelet, proxy and
// kubectl need no other code for one node than for a cluster. It checks, fills in, translates and answers; the objects
// live in standalone/store. Whoever holds a client certificate of the node's authority is its administrator.
//
// Not here: admission plugins, RBAC, aggregation, custom resources, service account tokens. See
// docs/decisions/0001-local-api.md.
package api

import (
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/standalone/store"
)

// Config says what the API serves and for which node.
type Config struct {
	Store       *store.Store
	NodeName    string       // every pod without a node is bound to it at creation
	ServiceCIDR netip.Prefix // cluster IPs; the first address is the API's own
	Kubelet     Kubelet      // where logs, exec, attach and port-forward go
	Version     string       // Kubernetes version to report, "v1.37.2"; Build is added to it
	Build       string
	Now         func() time.Time // nil: the clock
}

// Kubelet is how the node's kubelet is reached.
type Kubelet struct {
	URL       *url.URL          // https://host:port
	Transport http.RoundTripper // HTTP/1.1 (upgrades), with the API's client certificate; nil: no kubelet
}

// Server answers requests; it is an http.Handler, and its methods are the same operations for parts of this process.
type Server struct {
	Config
	started time.Time

	alloc sync.Mutex // held from choosing a cluster IP or node port until the service is stored
}

// Namespaces that always exist.
var birthNamespaces = []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, "kube-node-lease"}

// New returns a server and makes sure that the namespaces which every cluster has exist.
func New(c Config) (*Server, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Server{Config: c, started: c.Now()}
	for _, name := range birthNamespaces {
		if err := s.ensureNamespace(name); err != nil {
			return nil, err
		}
	}
	s.resumeNamespaces()
	return s, nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if open, answer := s.openPath(req.URL.Path); open {
		answer(w, req)
		return
	}
	if !known(req) {
		s.fail(w, req, unauthorized())
		return
	}
	if answer := s.plainPath(req.URL.Path); answer != nil {
		answer(w, req)
		return
	}
	r, err := parse(req)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	if err := s.serve(w, r); err != nil {
		s.fail(w, req, err)
	}
}

// known reports whether the client showed a certificate that the node's authority signed.
func known(req *http.Request) bool {
	return req.TLS != nil && len(req.TLS.VerifiedChains) > 0
}

// openPath finds what is answered to anyone: is it alive, and which version is it.
func (s *Server) openPath(path string) (bool, http.HandlerFunc) {
	switch path {
	case "/healthz", "/livez", "/readyz", "/healthz/ping", "/livez/ping", "/readyz/ping":
		return true, func(w http.ResponseWriter, _ *http.Request) { writeText(w, "ok") }
	case "/version", "/version/":
		return true, s.version
	}
	return false, nil
}

func (s *Server) plainPath(path string) http.HandlerFunc {
	switch path {
	case "/", "":
		return s.index
	case "/api", "/api/":
		return s.coreVersions
	case "/apis", "/apis/":
		return s.groups
	case "/openapi/v2":
		return s.openapiV2
	case "/openapi/v3", "/openapi/v3/":
		return s.openapiIndex
	}
	for _, g := range groupVersions() {
		switch path {
		case g.path(), g.path() + "/":
			return func(w http.ResponseWriter, req *http.Request) { s.groupResources(w, req, g) }
		case "/apis/" + g.group, "/apis/" + g.group + "/":
			if g.group != "" {
				return func(w http.ResponseWriter, req *http.Request) { s.group(w, req, g) }
			}
		case "/openapi/v3" + g.path():
			return func(w http.ResponseWriter, req *http.Request) { s.openapiGroup(w, req, g) }
		}
	}
	return nil
}
