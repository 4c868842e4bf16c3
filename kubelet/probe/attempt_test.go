package probe

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// try makes one attempt of a handler against a pod on loopback.
func try(t *testing.T, h v1.ProbeHandler, ports ...v1.ContainerPort) outcome {
	t.Helper()
	p := New(nil, nil, nil)
	return p.attempt(t.Context(), &Target{Key: Key{Container: "c"}, PodIP: "127.0.0.1",
		Container: &v1.Container{Name: "c", Ports: ports}, Probe: &v1.Probe{ProbeHandler: h}}, 300*time.Millisecond)
}

func portNumber(t *testing.T, addr string) int {
	t.Helper()
	_, s, err := net.SplitHostPort(strings.TrimPrefix(strings.TrimPrefix(addr, "http://"), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/code/{n}", func(w http.ResponseWriter, r *http.Request) {
		var n int
		fmt.Sscan(r.PathValue("n"), &n)
		w.WriteHeader(n)
	})
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/code/500", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", 20<<10)) })
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s|%s|%s|%s|%s|%v", r.Host, r.UserAgent(), r.Header.Get("Accept"), r.Header.Get("X-A"), r.URL.RawQuery, r.Close)
	})
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer secure.Close()

	for _, c := range []struct {
		name, path string
		https      bool
		headers    []v1.HTTPHeader
		verdict    Verdict
		says       string
	}{
		{name: "200", path: "/code/200", verdict: Success},
		{name: "304 is below 400", path: "/code/304", verdict: Success},
		{name: "404", path: "/code/404", verdict: Failure, says: "HTTP probe failed with statuscode: 404"},
		{name: "redirect on the host is followed", path: "/here", verdict: Failure, says: "HTTP probe failed with statuscode: 500"},
		{name: "redirect elsewhere is not", path: "/away", verdict: Success, says: "Probe terminated redirects"},
		{name: "timeout", path: "/slow", verdict: Failure, says: "no answer within 300ms"},
		{name: "certificate is not asked for", path: "/code/200", https: true, verdict: Success},
		{name: "own headers", path: "echo?a=b", verdict: Success, says: "|kube-probe/1.37|*/*||a=b|true"},
		{name: "given headers", path: "/echo", verdict: Success, says: "web.example|me|text/x|1||true",
			headers: []v1.HTTPHeader{{Name: "host", Value: "web.example"}, {Name: "User-Agent", Value: "me"}, {Name: "accept", Value: "text/x"}, {Name: "X-A", Value: "1"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &v1.HTTPGetAction{Path: c.path, HTTPHeaders: c.headers, Port: intstr.FromString("web"), Scheme: v1.URISchemeHTTP}
			port := portNumber(t, plain.URL)
			if c.https {
				h.Scheme, port = v1.URISchemeHTTPS, portNumber(t, secure.URL)
			}
			got := try(t, v1.ProbeHandler{HTTPGet: h}, v1.ContainerPort{Name: "web", ContainerPort: int32(port)})
			if got.err != nil || got.verdict != c.verdict || !strings.Contains(got.output, c.says) {
				t.Fatalf("got %v %q err %v, want %v %q", got.verdict, got.output, got.err, c.verdict, c.says)
			}
		})
	}
	big := try(t, v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/big", Port: intstr.FromInt(portNumber(t, plain.URL))}})
	if len(big.output) != 10<<10 {
		t.Fatalf("%d bytes of output kept", len(big.output))
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(l.Addr().(*net.TCPAddr).Port)}}
	if got := try(t, h); got.verdict != Success {
		t.Fatalf("listening port: %+v", got)
	}
	_ = l.Close()
	if got := try(t, h); got.verdict != Failure || !strings.Contains(got.output, "connection refused") {
		t.Fatalf("closed port: %+v", got)
	}
	got := try(t, v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromString("nope")}})
	if got.err == nil || !strings.Contains(got.err.Error(), `"nope"`) {
		t.Fatalf("unknown port name: %+v", got)
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, hs := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, hs)
	hs.SetServingStatus("sick", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	go func() { _ = srv.Serve(l) }()
	defer srv.Stop()
	port := int32(l.Addr().(*net.TCPAddr).Port)
	check := func(service string, port int32, v Verdict, says string) {
		t.Helper()
		got := try(t, v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: port, Service: &service}})
		if got.err != nil || got.verdict != v || !strings.Contains(got.output, says) {
			t.Fatalf("service %q: got %v %q err %v", service, got.verdict, got.output, got.err)
		}
	}
	check("", port, Success, "service healthy")
	check("sick", port, Failure, `service unhealthy (responded with "NOT_SERVING")`)
	check("strange", port, Failure, "unknown service")
	check("", 1, Failure, "failed to connect service")

	bare := grpc.NewServer()
	l2, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = bare.Serve(l2) }()
	defer bare.Stop()
	check("", int32(l2.Addr().(*net.TCPAddr).Port), Failure, "does not implement the grpc health protocol")
}

func TestCommandKnowsStaticEnvironmentOnly(t *testing.T) {
	var ran []string
	p := New(func(_ context.Context, _ string, cmd []string, _ time.Duration) ([]byte, int, error) {
		ran = cmd
		return []byte("\xffbad"), 3, nil
	}, nil, nil)
	c := &v1.Container{Name: "c", Env: []v1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", ValueFrom: &v1.EnvVarSource{}}}}
	got := p.attempt(t.Context(), &Target{Container: c, Probe: &v1.Probe{ProbeHandler: v1.ProbeHandler{
		Exec: &v1.ExecAction{Command: []string{"$(A)", "$(B)", "$$(A)", "a$(A", "$"}}}}}, time.Second)
	want(t, ran, "1", "$(B)", "$(A)", "a$(A", "$")
	if got.verdict != Failure || got.output != "?bad" {
		t.Fatalf("%+v", got)
	}
}
