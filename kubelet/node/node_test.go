package node

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	coordination "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/rest"
	"worknode/kube"
)

// apiServer keeps one Node and one Lease.
type apiServer struct {
	t   *testing.T
	dec runtime.Decoder

	mu    sync.Mutex
	node  *v1.Node
	lease *coordination.Lease
	told  chan string
}

func serve(t *testing.T) (*apiServer, *kube.Client) {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1.AddToScheme, coordination.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	s := &apiServer{t: t, dec: protobuf.NewSerializer(scheme, scheme), told: make(chan string, 1000)}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	c, err := kube.For(&rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	what := r.Method + " " + r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	if strings.Contains(r.URL.Path, "/leases") {
		what = r.Method + " lease"
	}
	defer func() { s.told <- what }()
	w.Header().Set("Content-Type", "application/json")
	fail := func(code int, reason metav1.StatusReason) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: reason, Code: int32(code)})
	}
	switch what {
	case "POST nodes":
		if s.node != nil {
			fail(409, metav1.StatusReasonAlreadyExists)
			return
		}
		s.node = &v1.Node{}
		s.decode(body, s.node)
		s.node.UID = "nu1"
		s.node.TypeMeta = metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}
	case "PATCH status", "PATCH n1":
		if s.node == nil {
			fail(404, metav1.StatusReasonNotFound)
			return
		}
		old, _ := json.Marshal(s.node)
		now, err := strategicpatch.StrategicMergePatch(old, body, v1.Node{})
		if err != nil {
			s.t.Errorf("patch %s: %v", body, err)
		}
		s.node = &v1.Node{}
		if err := json.Unmarshal(now, s.node); err != nil {
			s.t.Error(err)
		}
	case "GET lease":
		if s.lease == nil {
			fail(404, metav1.StatusReasonNotFound)
			return
		}
	case "POST lease", "PUT lease":
		s.lease = &coordination.Lease{}
		s.decode(body, s.lease)
		s.lease.ResourceVersion = "7"
		s.lease.TypeMeta = metav1.TypeMeta{Kind: "Lease", APIVersion: "coordination.k8s.io/v1"}
	case "GET n1":
	default:
		s.t.Errorf("unexpected %s %s", r.Method, r.URL.Path)
	}
	if strings.HasSuffix(what, "lease") {
		_ = json.NewEncoder(w).Encode(s.lease)
		return
	}
	_ = json.NewEncoder(w).Encode(s.node)
}

func (s *apiServer) decode(body []byte, into runtime.Object) {
	if _, _, err := s.dec.Decode(body, nil, into); err != nil {
		s.t.Error(err)
	}
}

// wait reads the server's calls until one is want.
func (s *apiServer) wait(t *testing.T, want string) {
	t.Helper()
	for deadline := time.After(20 * time.Second); ; {
		select {
		case got := <-s.told:
			if got == want {
				return
			}
		case <-deadline:
			t.Fatalf("no %q within 20 s", want)
		}
	}
}

func (s *apiServer) ready() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := find(s.node.Status.Conditions, v1.NodeReady)
	return string(c.Status) + " " + c.Message
}

// words collects the node's events.
type words struct {
	mu   sync.Mutex
	said []string
}

func (w *words) event(_, reason, _ string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, reason)
}

func (w *words) has(reason string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.said {
		if s == reason {
			return true
		}
	}
	return false
}

type fakeRuntime struct {
	mu sync.Mutex
	rt Runtime
	e  error
}

func (f *fakeRuntime) set(rt Runtime, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rt, f.e = rt, err
}

func (f *fakeRuntime) ask(context.Context) (Runtime, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rt, f.e
}

var well = Runtime{Name: "worknode", Version: "1"}

func run(t *testing.T, c *kube.Client, rt *fakeRuntime, w *words) (*Node, func()) {
	t.Helper()
	n := New(Config{Client: c, Name: "n1", IPs: []string{"10.0.0.1", "fd00::1"}, KubeletPort: 10250, Version: "v1.37.2-worknode", RootDir: t.TempDir(),
		Labels: map[string]string{"zone": "a"}, PodCIDR: "10.1.0.0/24", Runtime: rt.ask, Event: w.event})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { n.Run(ctx); close(done) }()
	return n, sync.OnceFunc(func() { cancel(); <-done })
}

func TestNodeRegistersAndHoldsItsLease(t *testing.T) {
	s, c := serve(t)
	rt := &fakeRuntime{rt: well}
	w := &words{}
	n, stop := run(t, c, rt, w)
	defer stop()
	s.wait(t, "POST lease")
	s.mu.Lock()
	got, lease := s.node, s.lease
	s.mu.Unlock()
	if s.ready() != "True kubelet is posting ready status" || !n.Ready() || !w.has("NodeReady") || !w.has("Starting") {
		t.Fatalf("%s, said %v", s.ready(), w.said)
	}
	if got.Labels["kubernetes.io/hostname"] != "n1" || got.Labels["zone"] != "a" || got.Spec.PodCIDR != "10.1.0.0/24" ||
		got.Status.NodeInfo.ContainerRuntimeVersion != "worknode://1" || got.Status.DaemonEndpoints.KubeletEndpoint.Port != 10250 || len(got.Status.Addresses) != 3 {
		t.Fatalf("%+v", got)
	}
	if *lease.Spec.HolderIdentity != "n1" || *lease.Spec.LeaseDurationSeconds != 40 || lease.OwnerReferences[0].UID != "nu1" || time.Since(lease.Spec.RenewTime.Time) > time.Minute {
		t.Fatalf("%+v", lease)
	}
	if got, want := quantities(n.Allocatable()), quantities(got.Status.Allocatable); got != want {
		t.Fatalf("allocatable %s, status says %s", got, want)
	}
}

func TestRuntimeTroubleIsToldAndEnds(t *testing.T) {
	s, c := serve(t)
	rt := &fakeRuntime{rt: well}
	w := &words{}
	n, stop := run(t, c, rt, w)
	defer stop()
	s.wait(t, "POST lease")
	// Someone else's condition must survive our patches.
	s.mu.Lock()
	s.node.Status.Conditions = append(s.node.Status.Conditions, v1.NodeCondition{Type: v1.NodeNetworkUnavailable, Status: v1.ConditionFalse})
	s.mu.Unlock()

	rt.set(Runtime{Name: "worknode", Version: "1", Problem: "no network"}, nil)
	n.Kick()
	s.wait(t, "PATCH status")
	if s.ready() != "False no network" {
		t.Fatal(s.ready())
	}
	rt.set(well, nil) // not ready is looked at again without a kick
	s.wait(t, "PATCH status")
	if s.ready() != "True kubelet is posting ready status" || !w.has("NodeNotReady") {
		t.Fatal(s.ready(), w.said)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.node.Status.Conditions) != 5 || len(s.node.Status.Addresses) != 3 {
		t.Fatalf("%+v %+v", s.node.Status.Conditions, s.node.Status.Addresses)
	}
}

func TestRestartWithASilentRuntimeDoesNotFlap(t *testing.T) {
	s, c := serve(t)
	w := &words{}
	_, stop := run(t, c, &fakeRuntime{rt: well}, w)
	s.wait(t, "POST lease")
	stop()
	_, stop = run(t, c, &fakeRuntime{e: errors.New("connection refused")}, w)
	defer stop()
	s.wait(t, "PUT lease")
	if s.ready() != "True kubelet is posting ready status" || w.has("NodeNotReady") || w.has("Rebooted") {
		t.Fatal(s.ready(), w.said)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.node.Status.NodeInfo.ContainerRuntimeVersion; v != "worknode://1" {
		t.Fatal(v)
	}
}

func TestRebootIsToldAndReadyBeginsAnew(t *testing.T) {
	s, c := serve(t)
	_, stop := run(t, c, &fakeRuntime{rt: well}, &words{})
	s.wait(t, "POST lease")
	stop()
	s.mu.Lock()
	s.node.Status.NodeInfo.BootID = "another"
	s.node.Labels["zone"], s.node.Labels["mine"] = "b", "kept"
	s.mu.Unlock()
	w := &words{}
	_, stop = run(t, c, &fakeRuntime{e: errors.New("connection refused")}, w)
	defer stop()
	s.wait(t, "PATCH status")
	if !w.has("Rebooted") || s.ready() != "False container runtime is down: connection refused" {
		t.Fatal(s.ready(), w.said)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.node.Labels["zone"] != "a" || s.node.Labels["mine"] != "kept" {
		t.Fatal(s.node.Labels)
	}
}

func TestDeletedNodeComesBack(t *testing.T) {
	s, c := serve(t)
	rt := &fakeRuntime{rt: well}
	n, stop := run(t, c, rt, &words{})
	defer stop()
	s.wait(t, "POST lease")
	s.mu.Lock()
	s.node = nil
	s.mu.Unlock()
	rt.set(Runtime{Name: "worknode", Version: "2"}, nil)
	n.Kick()
	s.wait(t, "POST nodes")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.node == nil || s.node.Status.NodeInfo.ContainerRuntimeVersion != "worknode://2" {
		t.Fatalf("%+v", s.node)
	}
}
