// Package event tells the API server what happens to pods and to the node, for people to read.
//
// Telling never blocks and never fails: events are merged, bounded and written one after another in the background.
// They are not a record: under pressure, or when the API server is away for long, some are dropped and counted.
package event

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"worknode/kube"
)

const (
	writeWithin = 10 * time.Second
	flushWithin = time.Second // for what is left at the end
	retryFirst  = 200 * time.Millisecond
	retryMost   = 10 * time.Second
)

// Recorder writes the events of one component. Make it with New; it writes while Run runs.
type Recorder struct {
	client          *kube.Client
	component, host string
	wake            chan struct{}
	dropped         atomic.Uint64

	mu   sync.Mutex
	book *book
}

// New returns a Recorder for a component ("kubelet") on a node.
func New(client *kube.Client, component, host string) *Recorder {
	return &Recorder{client: client, component: component, host: host, wake: make(chan struct{}, 1), book: newBook()}
}

// Pod refers to a pod, or with a container's name to that container of it.
func Pod(pod *v1.Pod, container string) v1.ObjectReference {
	ref := v1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion}
	if container == "" {
		return ref
	}
	in := func(list, name string) { ref.FieldPath = fmt.Sprintf("spec.%s{%s}", list, name) }
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == container {
			in("initContainers", container)
		}
	}
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == container {
			in("containers", container)
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == container {
			in("ephemeralContainers", container)
		}
	}
	return ref
}

// Node refers to a node, by name as uid, which is how node events have always been found.
func Node(name string) v1.ObjectReference {
	return v1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: name, UID: types.UID(name)}
}

// Event tells that something happened to an object. kind is v1.EventTypeNormal or v1.EventTypeWarning. The same event
// again raises the count of the first. It does not block, and may be called before Run.
func (r *Recorder) Event(ref v1.ObjectReference, kind, reason, message string) {
	r.mu.Lock()
	ok := r.book.add(time.Now(), ref, kind, reason, message)
	r.mu.Unlock()
	if !ok {
		r.dropped.Add(1)
		return
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Dropped is how many events were never written: over an object's rate, the queue full, or refused by the API server.
func (r *Recorder) Dropped() uint64 { return r.dropped.Load() }

// Run writes events until ctx ends, and then for one more second what is left.
func (r *Recorder) Run(ctx context.Context) {
	for {
		r.writeAll(ctx)
		select {
		case <-r.wake:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushWithin)
			defer cancel()
			r.writeAll(last)
			return
		}
	}
}

func (r *Recorder) writeAll(ctx context.Context) {
	for ctx.Err() == nil {
		r.mu.Lock()
		e, now, ok := r.book.next()
		r.mu.Unlock()
		if !ok {
			return
		}
		stored, err := r.write(ctx, &now)
		if ctx.Err() != nil && !stored {
			r.mu.Lock()
			r.book.again(e)
			r.mu.Unlock()
			return
		}
		if err != nil {
			r.dropped.Add(1)
			slog.Debug("event refused", "object", now.same.object.Name, "reason", now.reason, "err", err)
			continue
		}
		r.mu.Lock()
		e.stored = true
		r.mu.Unlock()
	}
}

// write brings one event to the API server and retries until it has an answer. An error is the server's refusal.
func (r *Recorder) write(ctx context.Context, e *entry) (stored bool, err error) {
	for wait := retryFirst; ; wait = min(2*wait, retryMost) {
		one, cancel := context.WithTimeout(ctx, writeWithin)
		err = r.once(one, e)
		cancel()
		switch {
		case err == nil:
			return true, nil
		case refused(err):
			return false, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (r *Recorder) once(ctx context.Context, e *entry) error {
	obj := e.object(r.component, r.host)
	if e.stored {
		patch, err := json.Marshal(map[string]any{"count": e.count, "lastTimestamp": obj.LastTimestamp})
		if err != nil {
			return err
		}
		err = r.client.Patch(ctx, kube.Events, obj.Namespace, obj.Name, types.MergePatchType, patch, nil)
		if !apierrors.IsNotFound(err) {
			return err
		}
		// The API server has forgotten it: it becomes a new one, with its history.
	}
	err := r.client.Create(ctx, kube.Events, obj.Namespace, obj, &v1.Event{})
	if apierrors.IsAlreadyExists(err) {
		return nil // an earlier attempt whose answer was lost
	}
	return err
}

// refused reports whether the server answered that it will not take the event, now or later.
func refused(err error) bool {
	var s apierrors.APIStatus
	if errors.As(err, &s) {
		code := s.Status().Code
		return code >= 400 && code < 500 && code != 429 && s.Status().Reason != metav1.StatusReasonTimeout
	}
	return false
}
