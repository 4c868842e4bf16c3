package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"worknode/proxy/state"
)

var both = []state.Family{state.V4, state.V6}

func get(h http.Handler, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// Source: healthcheck_test.go TestHealthzServer and TestLivezServer. A step changes the world; then both are asked.
func TestHealthzAndLivez(t *testing.T) {
	h := NewHealth(both, 50*time.Millisecond)
	handler := h.Handler()
	eligible := state.Node{Exists: true, Eligible: true}
	for _, c := range []struct {
		name                 string
		step                 func()
		healthz, livez       int
		healthy, nodeIsFine  bool
		hasStatus, recentTwo bool // lastUpdated is now, on healthz and livez
	}{
		{"at the start there is no Node", func() {}, 503, 200, true, false, false, false},
		{"the Node is there", func() { h.Node(eligible) }, 200, 200, true, true, false, true},
		{"a change waits, not for long", func() { h.Received(time.Now()) }, 200, 200, true, true, false, true},
		{"it is in the kernel", func() { h.Committed(time.Now().Add(-time.Hour)) }, 200, 200, true, true, true, true},
		{"a change waits too long", func() { h.Received(time.Now().Add(-time.Second)) }, 503, 503, false, true, true, false},
		{"another one changes nothing", func() { h.Received(time.Now()) }, 503, 503, false, true, true, false},
		{"all in the kernel", func() { h.Committed(time.Now()) }, 200, 200, true, true, true, true},
		{"the Node goes", func() { h.Node(state.Node{Exists: true}) }, 503, 200, true, false, true, false},
		{"the Node is gone", func() { h.Node(state.Node{}) }, 503, 200, true, false, true, false},
		{"and is back", func() { h.Node(eligible) }, 200, 200, true, true, true, true},
	} {
		c.step()
		for path, code := range map[string]int{"/healthz": c.healthz, "/livez": c.livez} {
			w := get(handler, path)
			var r struct {
				LastUpdated, CurrentTime time.Time
				NodeEligible             *bool
				Healthy                  *bool
				Status                   map[string]struct {
					LastUpdated time.Time
					Healthy     bool
				}
			}
			if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil {
				t.Fatalf("%s: %s: %v", c.name, path, err)
			}
			if w.Code != code || r.Healthy == nil || *r.Healthy != c.healthy {
				t.Errorf("%s: %s: %d %s, want %d and healthy %v", c.name, path, w.Code, w.Body, code, c.healthy)
			}
			if (r.NodeEligible != nil) != (path == "/healthz") || r.NodeEligible != nil && *r.NodeEligible != c.nodeIsFine {
				t.Errorf("%s: %s: nodeEligible %v", c.name, path, w.Body)
			}
			if c.hasStatus != (len(r.Status) == 2) || c.hasStatus && r.Status["IPv6"].Healthy != c.healthy {
				t.Errorf("%s: %s: status %v", c.name, path, r.Status)
			}
			if c.recentTwo && r.LastUpdated != r.CurrentTime {
				t.Errorf("%s: %s: lastUpdated %v at %v", c.name, path, r.LastUpdated, r.CurrentTime)
			}
			if w.Header().Get("Content-Type") != "application/json" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: %v", path, w.Header())
			}
		}
	}
	if w := get(handler, "/other"); w.Code != 404 {
		t.Errorf("another path: %d", w.Code)
	}
	// Upstream's order of fields, which some read by eye.
	if body := get(handler, "/healthz").Body.String(); !strings.HasPrefix(body, `{"lastUpdated":"`) || !strings.Contains(body, `","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"`) {
		t.Errorf("%s", body)
	}
}

func scene() (*Health, *Metrics) {
	h := NewHealth(both, time.Minute)
	m := NewMetrics(h)
	m.Listeners = func(f state.Family) (int, uint64) { return int(f), 1 }
	now := time.Now()
	m.Received(state.Received{Kind: "Service", At: now})
	m.Received(state.Received{Kind: "EndpointSlice", At: now})
	m.Received(state.Received{Kind: "Node", At: now})
	m.Committed(state.Commit{Began: now, Done: now.Add(1500 * time.Microsecond), Full: true, Transactions: 1, Elements: 7, Triggers: []time.Time{now.Add(-700 * time.Millisecond)},
		AllServices: 2, AllSlices: 3, AllEndpoints: 4, NoLocal: state.NoLocal{Internal: 1, External: 2}})
	m.Received(state.Received{Kind: "EndpointSlice", At: now})
	m.Failed(errors.New("no"))
	m.Cleaned(state.Cleaned{Family: state.V4, Deleted: 5, Took: time.Millisecond})
	m.Trouble(state.Trouble{Kind: "Service", Object: state.Name{Namespace: "a", Name: "b"}, Reason: "Clash"})
	return h, m
}

// The format is Prometheus's, and kube-proxy's names have kube-proxy's types, labels and values.
func TestMetrics(t *testing.T) {
	_, m := scene()
	var out bytes.Buffer
	m.Write(&out)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for name, kind := range map[string]string{
		"sync_proxy_rules_duration_seconds": "HISTOGRAM", "sync_full_proxy_rules_duration_seconds": "HISTOGRAM", "sync_partial_proxy_rules_duration_seconds": "HISTOGRAM",
		"network_programming_duration_seconds": "HISTOGRAM", "sync_proxy_rules_last_timestamp_seconds": "GAUGE", "sync_proxy_rules_last_queued_timestamp_seconds": "GAUGE",
		"sync_proxy_rules_endpoint_changes_pending": "GAUGE", "sync_proxy_rules_endpoint_changes_total": "COUNTER", "sync_proxy_rules_service_changes_pending": "GAUGE",
		"sync_proxy_rules_service_changes_total": "COUNTER", "sync_proxy_rules_nftables_sync_failures_total": "COUNTER",
		"sync_proxy_rules_nftables_cleanup_failures_total": "COUNTER", "sync_proxy_rules_no_local_endpoints_total": "GAUGE", "proxy_healthz_total": "COUNTER",
		"proxy_livez_total": "COUNTER", "conntrack_reconciler_sync_duration_seconds": "HISTOGRAM", "conntrack_reconciler_deleted_entries_total": "COUNTER",
		"nftables_localhost_nodeport_listeners": "GAUGE", "nftables_localhost_nodeport_listener_creation_failures_total": "COUNTER",
	} {
		f := families["kubeproxy_"+name]
		if f == nil || f.GetType().String() != kind {
			t.Errorf("kubeproxy_%s is %v, want a %s", name, f.GetType(), kind)
		}
	}
	for _, line := range []string{
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.001"} 0`,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv6",le="0.002"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="16.384"} 1`,
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 0`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="0.5"} 0`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="1"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="300"} 1`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_pending 1`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_total 2`,
		`kubeproxy_sync_proxy_rules_service_changes_pending 0`,
		`kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv6"} 1`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 2`,
		`kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 5`,
		`kubeproxy_nftables_localhost_nodeport_listeners{ip_family="IPv6"} 6`,
		`worknode_proxy_commit_duration_seconds_bucket{le="0.001"} 0`,
		`worknode_proxy_commit_duration_seconds_bucket{le="0.0025"} 1`,
		`worknode_proxy_elements_total 7`,
		`worknode_proxy_endpoints 4`,
		`worknode_proxy_troubles 1`,
	} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("missing: %s", line)
		}
	}
	m.Trouble(state.Trouble{Kind: "Service", Object: state.Name{Namespace: "a", Name: "b"}})
	out.Reset()
	if m.Write(&out); !strings.Contains(out.String(), "worknode_proxy_troubles 0\n") {
		t.Error("the trouble is over")
	}
}

func TestPages(t *testing.T) {
	_, m := scene()
	p := &Pages{Metrics: m, Mode: func() string { return "iptables" }, Configz: func() any { return map[string]any{"mode": "iptables"} },
		Flags: func() map[string]string { return map[string]string{"v": "2", "config": "/f"} }, Statusz: true, Profile: true,
		Verbose: func(s string) (string, error) {
			if s != "4" {
				return "", fmt.Errorf("failed set klog.logging.verbosity %s", s)
			}
			return "successfully set klog.logging.verbosity to 4", nil
		}}
	h := p.Handler()
	for _, c := range []struct {
		path, accept string
		code         int
		kind, body   string // body: begins so; *: contains
	}{
		{"/healthz", "", 200, "text/plain; charset=utf-8", "ok"},
		{"/healthz?verbose", "", 200, "text/plain; charset=utf-8", "[+]ping ok\nhealthz check passed\n"},
		{"/healthz/ping", "", 200, "text/plain; charset=utf-8", "ok"},
		{"/proxyMode", "", 200, "text/plain; charset=utf-8", "iptables"},
		{"/metrics", "", 200, "text/plain; version=0.0.4; charset=utf-8", "# HELP kubeproxy_proxy_healthz_total [ALPHA]"},
		{"/metrics/slis", "", 200, "text/plain; version=0.0.4; charset=utf-8", `*kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 3`},
		{"/configz", "", 200, "application/json", `{"kubeproxy.config.k8s.io":{"mode":"iptables"}}`},
		{"/flagz", "", 200, "text/plain; charset=utf-8", "\nkube-proxy flagz\nWarning: "},
		{"/flagz", "text/plain", 200, "text/plain; charset=utf-8", "*config=/f\nv=2\n"},
		{"/flagz", "application/json;v=v1beta1;g=config.k8s.io;as=Flagz", 200, "application/json", `{"apiVersion":"config.k8s.io/v1beta1","flags":{"config":"/f","v":"2"},"kind":"Flagz"`},
		{"/flagz", "application/json", 406, "text/plain; charset=utf-8", "only the following"},
		{"/statusz", "*/*", 200, "text/plain; charset=utf-8", "*Binary version: 1.37.2\nEmulation version: 1.37\nPaths: /configz /flagz /healthz /metrics /proxyMode\n"},
		{"/statusz", "application/json;v=v1beta1;g=config.k8s.io;as=Statusz", 200, "application/json", `*"binaryVersion":"1.37.2"`},
		{"/statusz", "application/yaml;v=v1alpha1;g=config.k8s.io;as=Statusz", 200, "application/yaml", "apiVersion: config.k8s.io/v1alpha1\n"},
		{"/debug/pprof/goroutine?debug=1", "", 200, "", "goroutine profile"},
		{"/debug/flags/v", "", 406, "text/plain; charset=utf-8", "unsupported http method"},
		{"/nowhere", "", 404, "", ""},
	} {
		w := get(h, c.path, "Accept", c.accept)
		inside, contains := strings.CutPrefix(c.body, "*")
		if w.Code != c.code || c.kind != "" && w.Header().Get("Content-Type") != c.kind ||
			contains && !strings.Contains(w.Body.String(), inside) || !contains && !strings.HasPrefix(w.Body.String(), c.body) {
			t.Errorf("%s (%s): %d %v %.300s", c.path, c.accept, w.Code, w.Header(), w.Body)
		}
	}
	put := func(path, body, method string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		return w
	}
	if w := put("/debug/flags/v", "4", "PUT"); w.Code != 200 || w.Body.String() != "successfully set klog.logging.verbosity to 4\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := put("/debug/flags/v", "x", "PUT"); w.Code != 400 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := put("/metrics/slis", "", "DELETE"); w.Code != 200 || strings.Contains(get(h, "/metrics/slis").Body.String(), "healthcheck") {
		t.Errorf("not reset: %d", w.Code)
	}
	// What is off is not there.
	quiet := (&Pages{Metrics: m, Mode: p.Mode, Configz: p.Configz}).Handler()
	for _, path := range []string{"/debug/pprof/", "/debug/flags/v", "/flagz", "/statusz"} {
		if w := get(quiet, path); w.Code != 404 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// An address that is taken is reported once and served when it is free; a reload moves the server.
func TestServerWaitsForItsAddress(t *testing.T) {
	holder, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := holder.Addr().String()
	failed := make(chan error, 10)
	s := NewServer("healthz", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "here") }), func(err error) { failed <- err })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { s.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	s.Address(taken)
	select {
	case err := <-failed:
		if !strings.Contains(err.Error(), "healthz on "+taken+": listen tcp") || !strings.Contains(err.Error(), "(end what listens there") {
			t.Errorf("%v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody says that the address is taken")
	}
	holder.Close()
	s.Address(taken) // as good as the retry
	up := func(addr string, want bool) {
		t.Helper()
		client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
			r, err := client.Get("http://" + addr)
			if err == nil {
				r.Body.Close()
			}
			if (err == nil) == want {
				return
			}
		}
		t.Fatalf("%s: up should be %v", addr, want)
	}
	up(taken, true)
	other, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	next := other.Addr().String()
	other.Close()
	s.Address(next)
	up(next, true)
	up(taken, false)
	s.Address("")
	up(next, false)
}
