package api

import (
	"net/http"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"worknode/standalone/store"
)

// request is one request for objects, taken apart.
type request struct {
	*http.Request
	query     url.Values
	resource  *store.Resource // nil for reviews
	review    string          // plural name of a review resource
	namespace string
	name      string
	sub       string // subresource
	rest      string // path behind a subresource "proxy"
	group     string
	version   string
}

// parse reads the path: /api/v1/… or /apis/GROUP/VERSION/…, then [namespaces/NS/]RESOURCE[/NAME[/SUB[/REST]]].
func parse(req *http.Request) (*request, error) {
	r := &request{Request: req, query: req.URL.Query()}
	path := strings.TrimPrefix(req.URL.Path, "/")
	root, path, _ := strings.Cut(path, "/")
	switch root {
	case "api":
	case "apis":
		r.group, path, _ = strings.Cut(path, "/")
	default:
		return nil, noSuchPath(req)
	}
	r.version, path, _ = strings.Cut(path, "/")
	parts := strings.SplitN(strings.TrimSuffix(path, "/"), "/", 6)
	// namespaces/NS/RESOURCE is a namespaced resource; namespaces, namespaces/NS and namespaces/NS/{status,finalize} are not.
	if parts[0] == "namespaces" && len(parts) > 2 && r.group == "" && parts[2] != "status" && parts[2] != "finalize" ||
		parts[0] == "namespaces" && len(parts) > 2 && r.group != "" {
		r.namespace, parts = parts[1], parts[2:]
	}
	at := func(i int) string {
		if i < len(parts) {
			return parts[i]
		}
		return ""
	}
	plural := at(0)
	r.name, r.sub = at(1), at(2)
	if len(parts) > 3 {
		r.rest = strings.Join(parts[3:], "/")
	}
	if r.group == authorizationGroup || r.group == authenticationGroup {
		r.review = plural
		return r, nil
	}
	r.resource = store.Lookup(r.group, r.version, plural)
	if r.resource == nil {
		return nil, noSuchPath(req)
	}
	if r.namespace == "" && r.resource == store.Namespaces {
		r.namespace = ""
	}
	if r.namespace != "" && !r.resource.Namespaced || r.name != "" && r.namespace == "" && r.resource.Namespaced {
		return nil, noSuchPath(req)
	}
	return r, nil
}

// serve answers a request for objects.
func (s *Server) serve(w http.ResponseWriter, r *request) error {
	if r.review != "" {
		return s.serveReview(w, r)
	}
	debug := r.sub == debugSub && r.resource == store.Pods && r.rest == ""
	if r.sub != "" && r.sub != "status" && !debug {
		return s.serveSub(w, r)
	}
	if r.sub == "status" && !r.resource.Status {
		return noSuchPath(r.Request)
	}
	if r.name == "" {
		return s.serveCollection(w, r)
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if isTrue(r.query.Get("watch")) {
			return s.watch(w, r)
		}
		return s.get(w, r)
	case http.MethodPut:
		return s.put(w, r)
	case http.MethodPatch:
		return s.patch(w, r)
	case http.MethodDelete:
		if r.sub == "" {
			return s.delete(w, r)
		}
	}
	return apierrors.NewMethodNotSupported(r.resource.GR(), strings.ToLower(r.Method))
}

func (s *Server) serveCollection(w http.ResponseWriter, r *request) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if isTrue(r.query.Get("watch")) {
			return s.watch(w, r)
		}
		return s.list(w, r)
	case http.MethodPost:
		return s.post(w, r)
	case http.MethodDelete:
		return s.deleteCollection(w, r)
	}
	return apierrors.NewMethodNotSupported(r.resource.GR(), strings.ToLower(r.Method))
}

func isTrue(value string) bool { return value == "true" || value == "1" || value == "True" }
