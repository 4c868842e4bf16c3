package event

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/rest"
	"worknode/kube"
)

var pod = &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u1"},
	Spec: v1.PodSpec{InitContainers: []v1.Container{{Name: "init"}}, Containers: []v1.Container{{Name: "app"}}}}

func TestRepetitionsAreCountedAndRatesBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newBook()
	for i := range burst {
		if !b.add(now, Pod(pod, "app"), "Warning", "BackOff", "again") {
			t.Fatalf("event %d refused", i)
		}
	}
	if b.add(now, Pod(pod, ""), "Warning", "Other", "x") {
		t.Fatal("the rate is the object's, not the event's")
	}
	if !b.add(now, Node("n1"), "Normal", "Starting", "") {
		t.Fatal("another object must not suffer")
	}
	if b.add(now.Add(refill-time.Second), Pod(pod, ""), "Warning", "Other", "x") {
		t.Fatal("too early")
	}
	if !b.add(now.Add(refill+time.Second), Pod(pod, ""), "Warning", "Other", "x") {
		t.Fatal("one more is due")
	}
	_, e, _ := b.next()
	if e.count != burst || e.reason != "BackOff" || len(b.queue) != 2 {
		t.Fatalf("%+v, %d more", e, len(b.queue))
	}
	later := now.Add(2*rememberFor + time.Second)
	b.add(later, Pod(pod, "app"), "Warning", "BackOff", "again")
	for range 2 {
		b.next()
	}
	if _, e, _ = b.next(); e.count != 1 || !e.first.Equal(later) {
		t.Fatalf("what the server forgot begins anew: %+v", e)
	}
}

func TestBookStaysSmall(t *testing.T) {
	b := newBook()
	accepted := 0
	for i := range 3 * objectsMost {
		ref := Node(fmt.Sprint(i))
		if b.add(time.Unix(int64(i), 0), ref, "Normal", "R", "m") {
			accepted++
		}
		if i%2 == 0 {
			b.next()
		}
	}
	if len(b.entries) > remember || len(b.objects) > objectsMost || len(b.queue) > waitMost {
		t.Fatalf("%d entries %d objects %d queued", len(b.entries), len(b.objects), len(b.queue))
	}
	if accepted < waitMost {
		t.Fatalf("only %d accepted", accepted)
	}
}

// events is an API server that keeps events and can be away.
type events struct {
	t   *testing.T
	dec runtime.Decoder

	mu     sync.Mutex
	have   map[string]*v1.Event
	calls  []string
	broken int // so many calls to answer with 503
	told   chan struct{}
}

func serve(t *testing.T) (*events, *kube.Client) {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	s := &events{t: t, dec: protobuf.NewSerializer(scheme, scheme), have: map[string]*v1.Event{}, told: make(chan struct{}, 1000)}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	c, err := kube.For(&rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func (s *events) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.told <- struct{}{} }()
	if s.broken > 0 {
		s.broken--
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	s.calls = append(s.calls, r.Method+" "+r.URL.Path[:strings.LastIndexByte(r.URL.Path, '/')])
	w.Header().Set("Content-Type", "application/json")
	ev := &v1.Event{}
	switch r.Method {
	case "POST":
		if _, _, err := s.dec.Decode(body, nil, ev); err != nil {
			s.t.Error(err)
		}
		s.have[ev.Name] = ev
	case "PATCH":
		name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		if ev = s.have[name]; ev == nil {
			w.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: 404})
			return
		}
		if err := json.Unmarshal(body, ev); err != nil {
			s.t.Error(err)
		}
	}
	out := *ev
	out.TypeMeta = metav1.TypeMeta{Kind: "Event", APIVersion: "v1"}
	_ = json.NewEncoder(w).Encode(out)
}

func (s *events) wait(t *testing.T, calls int) {
	t.Helper()
	for range calls {
		select {
		case <-s.told:
		case <-time.After(20 * time.Second):
			t.Fatalf("the API server was not called within 20 s; calls so far: %q", s.calls)
		}
	}
}

func run(t *testing.T, c *kube.Client) (*Recorder, func()) {
	t.Helper()
	r := New(c, "kubelet", "n1")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	return r, func() { cancel(); <-done }
}

func TestEventsReachTheServerOnceAndAreThenPatched(t *testing.T) {
	s, c := serve(t)
	r, stop := run(t, c)
	defer stop()
	r.Event(Pod(pod, "init"), "Normal", "Created", "made it")
	s.wait(t, 1)
	r.Event(Pod(pod, "init"), "Normal", "Created", "made it")
	s.wait(t, 1)
	if len(s.have) != 1 {
		t.Fatalf("%d events stored", len(s.have))
	}
	for name, e := range s.have {
		if e.Count != 2 || e.InvolvedObject.FieldPath != "spec.initContainers{init}" || e.Namespace != "shop" || e.Source.Host != "n1" ||
			e.ReportingController != "kubelet" || !strings.HasPrefix(name, "web.") || e.FirstTimestamp.IsZero() {
			t.Fatalf("%+v", e)
		}
		delete(s.have, name) // the server forgets
	}
	r.Event(Pod(pod, "init"), "Normal", "Created", "made it")
	s.wait(t, 2) // a patch that finds nothing, and a create
	if len(s.have) != 1 {
		t.Fatal("not created again")
	}
	r.Event(Node("n1"), "Normal", "Starting", "x")
	s.wait(t, 1)
	if last := s.calls[len(s.calls)-1]; last != "POST /api/v1/namespaces/default" {
		t.Fatalf("%q", last)
	}
}

func TestServerAwayDelaysAndDoesNotBlock(t *testing.T) {
	s, c := serve(t)
	s.broken = 2
	r, stop := run(t, c)
	defer stop()
	begun := time.Now()
	for i := range 20 {
		r.Event(Pod(pod, ""), "Normal", "R", fmt.Sprint(i))
	}
	if d := time.Since(begun); d > 100*time.Millisecond {
		t.Fatalf("20 events took %v", d)
	}
	s.wait(t, 22)
	if len(s.have) != 20 || r.Dropped() != 0 {
		t.Fatalf("%d stored, %d dropped", len(s.have), r.Dropped())
	}
}

func TestLastWordsAreWritten(t *testing.T) {
	s, c := serve(t)
	r, stop := run(t, c)
	r.Event(Pod(pod, "app"), "Normal", "Killing", "Stopping container app")
	stop()
	if len(s.have) != 1 {
		t.Fatalf("%d events stored when Run returned", len(s.have))
	}
}
