package healthport

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"worknode/proxy/state"
)

var loopback = netip.MustParseAddr("127.0.0.1")

func free(t *testing.T) (uint16, net.Listener) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return uint16(l.Addr().(*net.TCPAddr).Port), l
}

// ask waits for the answer that ok accepts, and returns it.
func ask(t *testing.T, port uint16, what string, ok func(*http.Response, string) bool) {
	t.Helper()
	last := ""
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/anything", port))
		if err == nil {
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if ok(r, string(b)) {
				return
			}
			last = fmt.Sprint(r.StatusCode, " ", string(b))
		} else if last = err.Error(); ok(nil, "") {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("%s: last answer: %s", what, last)
}

// The answers are upstream's to the byte. Source: healthcheck_test.go TestServer.
func TestAnswers(t *testing.T) {
	var healthy atomic.Bool
	healthy.Store(true)
	s := New(healthy.Load, nil)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { s.Run(ctx); close(ended) }()
	port, l := free(t)
	l.Close()
	web := state.Name{Namespace: "ns", Name: "web"}
	s.Listen([]netip.Addr{loopback})
	for _, c := range []struct {
		local   int
		healthy bool
		code    int
	}{{0, true, 503}, {3, true, 200}, {3, false, 503}, {0, false, 503}, {1, true, 200}} {
		healthy.Store(c.healthy)
		s.Update([]state.HealthPort{{Service: web, Port: port, Local: c.local}})
		want := fmt.Sprintf(`{
	"service": {
		"namespace": "ns",
		"name": "web"
	},
	"localEndpoints": %d,
	"serviceProxyHealthy": %v
}`, c.local, c.healthy)
		ask(t, port, want, func(r *http.Response, b string) bool {
			return r != nil && r.StatusCode == c.code && b == want && r.Header.Get("X-Load-Balancing-Endpoint-Weight") == fmt.Sprint(c.local) &&
				r.Header.Get("Content-Type") == "application/json" && r.Header.Get("X-Content-Type-Options") == "nosniff"
		})
	}
	// The Service changes its port; the old one closes. Then it is gone.
	other, l := free(t)
	l.Close()
	s.Update([]state.HealthPort{{Service: web, Port: other, Local: 1}})
	ask(t, other, "the new port", func(r *http.Response, _ string) bool { return r != nil && r.StatusCode == 200 })
	ask(t, port, "the old port", func(r *http.Response, _ string) bool { return r == nil })
	s.Listen(nil)
	ask(t, other, "no address", func(r *http.Response, _ string) bool { return r == nil })
	stop()
	<-ended
}

// A port that somebody else holds is reported once, keeps no other from being served, and is served once it is free.
func TestPortInUseIsReportedAndTakenLater(t *testing.T) {
	reports := make(chan string, 10)
	s := New(func() bool { return true }, func(svc state.Name, message string) { reports <- svc.String() + ": " + message })
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { s.Run(ctx); close(ended) }()
	taken, holder := free(t)
	port, l := free(t)
	l.Close()
	s.Listen([]netip.Addr{loopback})
	s.Update([]state.HealthPort{{Service: state.Name{Namespace: "ns", Name: "a"}, Port: taken, Local: 1}, {Service: state.Name{Namespace: "ns", Name: "b"}, Port: port, Local: 1}})
	ask(t, port, "the other Service", func(r *http.Response, _ string) bool { return r != nil && r.StatusCode == 200 })
	select {
	case got := <-reports:
		if !strings.HasPrefix(got, fmt.Sprintf(`ns/a: failed to start healthcheck "ns/a" on port %d: `, taken)) {
			t.Errorf("report %q", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no report of the port in use")
	}
	holder.Close()
	s.poke()
	ask(t, taken, "the port that became free", func(r *http.Response, _ string) bool { return r != nil && r.StatusCode == 200 })
	if len(reports) > 0 {
		t.Errorf("reported again: %q", <-reports)
	}
	stop()
	<-ended
}
