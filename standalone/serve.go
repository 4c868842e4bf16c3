package standalone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"worknode/fault"
	"worknode/standalone/api"
	"worknode/standalone/endpoints"
	"worknode/standalone/manifest"
	"worknode/standalone/store"
	"worknode/version"
)

const (
	clusterDomain = "cluster.local"
	dnsPort       = 10053 // of the proxy, on the node's address; pods ask the Service kube-dns, port 53
)

// local is the node's API and what keeps its objects true.
type local struct {
	node    *node
	objects *store.Store
	server  *api.Server
	stop    context.CancelFunc // ends the keeping of manifests
	kept    chan struct{}      // closed when that has ended
}

// openAPI serves the node's objects, and applies the manifests once; it returns when kubelet and proxy may come.
func (n *node) openAPI(ctx context.Context) (*local, error) {
	objects, err := store.Open(n.place.Objects())
	if err != nil {
		return nil, err
	}
	transport, err := n.toKubelet()
	if err != nil {
		return nil, err
	}
	server, err := api.New(api.Config{
		Store: objects, NodeName: n.NodeName, ServiceCIDR: n.ServiceCIDR, Version: version.Kubernetes, Build: version.Build,
		Kubelet: api.Kubelet{URL: &url.URL{Scheme: "https", Host: n.at(n.KubeletPort)}, Transport: transport},
	})
	if err != nil {
		return nil, err
	}
	if err := n.listenAPI(ctx, server); err != nil {
		return nil, err
	}
	n.tasks.Go("objects", objects.Run)
	n.tasks.Go("endpoints", endpoints.New(objects).Run)
	l := &local{node: n, objects: objects, server: server, kept: make(chan struct{})}
	for _, s := range n.builtin() {
		if err := l.announce(s); err != nil {
			return nil, err
		}
	}
	keeping, stop := context.WithCancel(ctx)
	l.stop = stop
	keeper, first := manifest.New(n.Dir, server, objects), make(chan struct{})
	n.tasks.Go("manifests", func(context.Context) {
		defer close(l.kept)
		keeper.Run(keeping, func() { close(first) })
	})
	<-first
	return l, nil
}

// at is a port on the node's address.
func (n *node) at(port int) string { return net.JoinHostPort(n.ip.String(), strconv.Itoa(port)) }

// toKubelet dials the kubelet inside the node's network. HTTP/1.1 alone: exec and attach are upgrades.
func (n *node) toKubelet() (http.RoundTripper, error) {
	pair, pool, err := n.identity("api-to-kubelet")
	if err != nil {
		return nil, err
	}
	return &http.Transport{
		TLSClientConfig:     &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: 10 * time.Second,
		DialContext: func(_ context.Context, _, addr string) (net.Conn, error) { return n.dial(addr) },
	}, nil
}

// identity loads a certificate with its key, and the pool of the node's own authority.
func (n *node) identity(name string) (tls.Certificate, *x509.CertPool, error) {
	pair, err := tls.LoadX509KeyPair(n.place.Cert(name), n.place.Key(name))
	if err != nil {
		return pair, nil, fmt.Errorf("certificate %s: %w", name, err)
	}
	data, err := os.ReadFile(n.place.CA())
	if err != nil {
		return pair, nil, fmt.Errorf("certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(data)
	return pair, pool, nil
}

// listenAPI serves on loopback and on the node's address; of an isolated node, on the host's loopback too.
func (n *node) listenAPI(ctx context.Context, handler http.Handler) error {
	pair, pool, err := n.identity("api")
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 5 * time.Minute,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12},
		ErrorLog:  log.New(quiet{}, "", 0),
	}
	context.AfterFunc(ctx, func() { server.Close() })
	loopback := net.JoinHostPort("127.0.0.1", strconv.Itoa(n.APIPort))
	open := func(where func(func() error) error, addr string) error {
		var l net.Listener
		err := where(func() (err error) {
			l, err = net.Listen("tcp4", addr)
			return err
		})
		if err != nil {
			return fault.Hint(fmt.Errorf("API on %s: %w", addr, err), "free that port, or choose another with --api-port")
		}
		n.tasks.Go("API on "+addr, func(context.Context) {
			if err := server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
				slog.Error("API stopped", "on", addr, "err", err)
			}
		})
		return nil
	}
	if n.netns != "" {
		if err := open(func(fn func() error) error { return fn() }, loopback); err != nil {
			return err
		}
	}
	if err := open(n.inside, loopback); err != nil {
		return err
	}
	return open(n.inside, n.at(n.APIPort))
}

// quiet passes the HTTP server's complaints about its clients to the debug log: scanners and cut connections are not news.
type quiet struct{}

func (quiet) Write(p []byte) (int, error) {
	slog.Debug("API connection", "err", strings.TrimSpace(string(p)))
	return len(p), nil
}

// builtinService is a Service of the node itself, with its one endpoint on the node's address.
type builtinService struct {
	namespace, name string
	ip              netip.Addr
	ports           []v1.ServicePort
}

func (n *node) builtin() []builtinService {
	first := n.ServiceCIDR.Masked().Addr().Next()
	port := func(name string, protocol v1.Protocol, port, target int) v1.ServicePort {
		return v1.ServicePort{Name: name, Protocol: protocol, Port: int32(port), TargetPort: intstr.FromInt32(int32(target))}
	}
	return []builtinService{
		{"default", "kubernetes", first, []v1.ServicePort{port("https", v1.ProtocolTCP, 443, n.APIPort)}},
		{"kube-system", "kube-dns", n.dnsIP(), []v1.ServicePort{port("dns", v1.ProtocolUDP, 53, dnsPort), port("dns-tcp", v1.ProtocolTCP, 53, dnsPort)}},
	}
}

// dnsIP is the tenth address of the Services, where clusters have their DNS.
func (n *node) dnsIP() netip.Addr {
	ip := n.ServiceCIDR.Masked().Addr()
	for range 10 {
		ip = ip.Next()
	}
	return ip
}

// announce stores a built-in Service and its endpoint.
func (l *local) announce(s builtinService) error {
	w := api.Write{Manager: "worknode"}
	var ports, targets []any
	for _, p := range s.ports {
		ports = append(ports, map[string]any{"name": p.Name, "protocol": string(p.Protocol), "port": int64(p.Port), "targetPort": int64(p.TargetPort.IntVal)})
		targets = append(targets, map[string]any{"name": p.Name, "protocol": string(p.Protocol), "port": int64(p.TargetPort.IntVal)})
	}
	apply := func() error {
		_, _, err := l.server.Apply(store.Services, s.namespace, s.name, map[string]any{
			"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"name": s.name, "namespace": s.namespace},
			"spec": map[string]any{"clusterIP": s.ip.String(), "ports": ports},
		}, true, w)
		return err
	}
	err := apply()
	if apierrors.IsInvalid(err) { // another --service-cidr than last time: an address cannot change, so the Service is made anew
		_, _, gone := l.server.Delete(store.Services, s.namespace, s.name, &metav1.DeleteOptions{})
		if gone == nil || apierrors.IsNotFound(gone) {
			err = apply()
		}
	}
	if err != nil {
		return fmt.Errorf("service %s/%s: %w", s.namespace, s.name, err)
	}
	_, _, err = l.server.Apply(store.EndpointSlices, s.namespace, s.name, map[string]any{
		"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
		"metadata": map[string]any{"name": s.name, "namespace": s.namespace,
			"labels": map[string]any{discoveryv1.LabelServiceName: s.name, discoveryv1.LabelManagedBy: "worknode"}},
		"addressType": "IPv4", "ports": targets,
		"endpoints": []any{map[string]any{"addresses": []any{l.node.ip.String()}, "conditions": map[string]any{"ready": true}}},
	}, true, w)
	if err != nil {
		return fmt.Errorf("endpoints of service %s/%s: %w", s.namespace, s.name, err)
	}
	return nil
}

// drain stops keeping the manifests, asks all pods to end and waits until they have, within limit beyond their grace.
func (l *local) drain(limit time.Duration) {
	l.stop()
	<-l.kept
	items, _, cursor := l.objects.ListAndWatch(store.Pods, "")
	defer cursor.Close()
	left := map[string]bool{}
	grace := int64(0)
	for _, item := range items {
		pod := item.Object.(*v1.Pod)
		if _, gone, err := l.server.Delete(store.Pods, pod.Namespace, pod.Name, &metav1.DeleteOptions{}); err != nil || gone {
			continue
		}
		left[string(pod.UID)] = true
		if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
			grace = max(grace, *g)
		}
	}
	deadline := time.After(limit + time.Duration(grace)*time.Second)
	buf := make([]store.Event, 0, 64)
	for len(left) > 0 {
		select {
		case <-deadline:
			slog.Error("pods did not end in time; they are killed", "pods", len(left))
			return
		case <-cursor.Ready():
		}
		events, _, err := cursor.Next(buf[:0])
		if err != nil {
			return
		}
		for _, e := range events {
			if e.Type == store.Deleted {
				delete(left, string(e.Item.Object.GetUID()))
			}
		}
	}
}

// announce prints where to look.
func (n *node) announce() {
	fmt.Fprintf(os.Stdout, "\nworknode is up. Manifests and images: %s\n  export KUBECONFIG=%s\n", n.Dir, n.place.Kubeconfig())
	for _, p := range n.Publish {
		fmt.Fprintf(os.Stdout, "  http://127.0.0.1:%d  is port %d of the node\n", p.Host, p.Node)
	}
	fmt.Fprintf(os.Stdout, "  logs of the node's own processes: %s\n\n", n.place.Logs())
}
