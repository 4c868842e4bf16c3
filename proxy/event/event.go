// Package event tells the API's users what the proxy cannot do for them: an event on the Node, or on the Service that it
// concerns. Events are never worth waiting for: the queue is short, and what does not fit is dropped.
package event

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/kube"
	"worknode/proxy/state"
)

const (
	queued  = 64              // events not written yet
	quiet   = 5 * time.Minute // the same event is not written again for so long
	known   = 512             // events that are remembered for that
	timeout = 10 * time.Second
)

// Recorder writes events. Its methods may be called from any goroutine and return at once. A nil one does nothing.
type Recorder struct {
	node  string
	queue chan *corev1.Event

	mu   sync.Mutex
	last map[string]time.Time
}

// New returns a recorder for the proxy of a node.
func New(node string) *Recorder {
	return &Recorder{node: node, queue: make(chan *corev1.Event, queued), last: map[string]time.Time{}}
}

// Node tells of the node as a whole.
func (r *Recorder) Node(kind, reason, action, message string) {
	if r != nil {
		r.add(corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: r.node}, kind, reason, action, message)
	}
}

// Trouble tells of one object. A trouble that is over is no event.
func (r *Recorder) Trouble(t state.Trouble) {
	if r == nil || t.Reason == "" {
		return
	}
	api := "v1"
	if t.Kind == "EndpointSlice" {
		api = "discovery.k8s.io/v1"
	}
	r.add(corev1.ObjectReference{APIVersion: api, Kind: t.Kind, Namespace: t.Object.Namespace, Name: t.Object.Name}, corev1.EventTypeWarning, t.Reason, "Serve", t.Message)
}

// Service tells of one Service.
func (r *Recorder) Service(name state.Name, reason, action, message string) {
	if r != nil {
		r.add(corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: name.Namespace, Name: name.Name}, corev1.EventTypeWarning, reason, action, message)
	}
}

func (r *Recorder) add(about corev1.ObjectReference, kind, reason, action, message string) {
	now := time.Now()
	if !r.news(fmt.Sprint(about, reason, message), now) {
		return
	}
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	e := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.%x%08x", about.Name, now.UnixNano(), rand.Uint32())},
		InvolvedObject: about, Type: kind, Reason: reason, Action: action, Message: message,
		Source: corev1.EventSource{Component: "kube-proxy", Host: r.node}, ReportingController: "kube-proxy", ReportingInstance: "kube-proxy-" + r.node,
		FirstTimestamp: metav1.NewTime(now), LastTimestamp: metav1.NewTime(now), Count: 1,
	}
	select {
	case r.queue <- e:
	default:
		slog.Debug("event dropped, too many wait", "reason", reason, "object", about.Name)
	}
}

// news tells whether an event was not told lately.
func (r *Recorder) news(what string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, told := r.last[what]; told && now.Sub(at) < quiet {
		return false
	}
	if len(r.last) >= known {
		clear(r.last)
	}
	r.last[what] = now
	return true
}

// Run writes what is queued until ctx ends. An event that the API does not take is lost: the log has it too.
func (r *Recorder) Run(ctx context.Context, client *kube.Client) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.queue:
			one, cancel := context.WithTimeout(ctx, timeout)
			if err := client.Create(one, kube.Events, e.Namespace, e, &corev1.Event{}); err != nil && ctx.Err() == nil {
				slog.Debug("event not written", "reason", e.Reason, "err", err)
			}
			cancel()
		}
	}
}
