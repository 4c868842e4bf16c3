package status

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"worknode/kube"
	"worknode/task"
)

const (
	// calm is how long news that can wait is held back, so that a pod that becomes ready within it costs one request.
	calm       = 40 * time.Millisecond
	retryFirst = 100 * time.Millisecond
	retryMost  = 10 * time.Second
	callTime   = 15 * time.Second

	inFlight = 32 // requests at a time
	ordinary = 24 // of them for news that can wait
)

// Written is the answer of the API server to a status.
type Written struct {
	UID   types.UID
	Phase v1.PodPhase
	Gone  bool // the object does not exist any more, or is another pod of the same name
}

// Writer brings statuses to the API server.
type Writer struct {
	client  *kube.Client
	tasks   *task.Group
	written func(Written)
	all     chan struct{} // holds one token per request in flight
	lesser  chan struct{}

	mu   sync.Mutex
	pods map[types.UID]*entry
}

// entry is one pod's newest status and what the server has. A goroutine serves it only while there is something to do.
type entry struct {
	ns, name string
	object   types.UID     // of the API object that shows the pod: its own, or its mirror's; empty: there is none yet
	last     *v1.PodStatus // the newest that Set was given
	next     *v1.PodStatus // to be written; nil: nothing
	sent     *v1.PodStatus // last confirmed; nil: unknown
	busy     bool
	now      chan struct{} // signals that next became urgent
}

// New returns a Writer whose work ends with ctx. written is called after each answer and must not block.
func New(ctx context.Context, client *kube.Client, written func(Written)) *Writer {
	return &Writer{
		client: client, tasks: task.New(ctx), written: written, pods: map[types.UID]*entry{},
		all: make(chan struct{}, inFlight), lesser: make(chan struct{}, ordinary),
	}
}

// Known tells the writer what the API server has of a pod, so that it is not written again.
func (w *Writer) Known(pod *v1.Pod, s *v1.PodStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.of(pod).sent = s
}

func (w *Writer) of(pod *v1.Pod) *entry {
	e := w.pods[pod.UID]
	if e == nil {
		e = &entry{ns: pod.Namespace, name: pod.Name, object: pod.UID, now: make(chan struct{}, 1)}
		w.pods[pod.UID] = e
	}
	return e
}

// Set hands over a pod's newest status, which nobody may change afterwards. It never blocks.
func (w *Writer) Set(pod *v1.Pod, s *v1.PodStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set(pod.UID, w.of(pod), s)
}

// Static says that the pod is not the API server's: its status waits until Shown tells where to write it.
func (w *Writer) Static(pod *v1.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.of(pod).object = ""
}

// Shown says that an API object, a mirror pod that was just made or seen, shows the static pod: its whole status goes there.
func (w *Writer) Shown(static, mirror types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.pods[static]
	if e == nil {
		return
	}
	e.object, e.sent = mirror, nil
	if e.last != nil {
		w.set(static, e, e.last)
	}
}

// set needs mu.
func (w *Writer) set(uid types.UID, e *entry, s *v1.PodStatus) {
	e.next, e.last = s, s
	if e.object == "" {
		return
	}
	if urgent(e.sent, s) {
		select {
		case e.now <- struct{}{}:
		default:
		}
	}
	if !e.busy {
		e.busy = true
		w.tasks.Go("status "+e.ns+"/"+e.name, func(ctx context.Context) { w.serve(ctx, uid, e) })
	}
}

// Drop forgets a pod; a request in flight ends by itself.
func (w *Writer) Drop(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.pods[uid]; e != nil {
		e.next = nil
		delete(w.pods, uid)
	}
}

// Delete removes the pod's object, with grace zero and only if it is still the same one. An object that is gone is success.
func (w *Writer) Delete(ctx context.Context, pod *v1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	zero, uid := int64(0), pod.UID
	err := w.client.Delete(ctx, kube.Pods, pod.Namespace, pod.Name, &metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &uid},
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// urgent says whether s must not wait: readiness or the end of the pod changed.
func urgent(sent, s *v1.PodStatus) bool {
	if s.Phase == v1.PodSucceeded || s.Phase == v1.PodFailed {
		return true
	}
	return isReady(s) != (sent != nil && isReady(sent))
}

func isReady(s *v1.PodStatus) bool {
	return slices.ContainsFunc(s.Conditions, func(c v1.PodCondition) bool { return c.Type == v1.PodReady && c.Status == v1.ConditionTrue })
}

// serve writes until nothing is left to write.
func (w *Writer) serve(ctx context.Context, uid types.UID, e *entry) {
	retry := retryFirst
	for {
		if !w.hold(ctx, e) {
			return
		}
		s, sent, object := w.take(e)
		if s == nil {
			return
		}
		err := w.write(ctx, object, e, s, sent)
		if ctx.Err() != nil {
			return
		}
		gone := apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err) && sent == nil
		switch {
		case err == nil:
			retry = retryFirst
			w.mu.Lock()
			if e.object == object { // else a new mirror was made meanwhile, and knows nothing
				e.sent = s
			}
			w.mu.Unlock()
			w.written(Written{UID: uid, Phase: s.Phase})
		case gone:
			slog.Debug("pod status not written: the object is gone", "pod", e.ns+"/"+e.name, "err", err)
			w.written(Written{UID: uid, Gone: true})
		default:
			if retry == retryFirst {
				slog.Warn("pod status not written, retrying", "pod", e.ns+"/"+e.name, "err", err)
			}
			w.mu.Lock()
			if e.next == nil && w.pods[uid] == e {
				e.next = s
			}
			w.mu.Unlock()
			select {
			case <-ctx.Done():
				return
			case <-time.After(retry):
			}
			retry = min(2*retry, retryMost)
		}
	}
}

// hold waits a moment if the next status is no urgent news. False: ctx ended.
func (w *Writer) hold(ctx context.Context, e *entry) bool {
	w.mu.Lock()
	wait := e.next != nil && !urgent(e.sent, e.next)
	w.mu.Unlock()
	if !wait {
		return ctx.Err() == nil
	}
	t := time.NewTimer(calm)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-e.now:
	case <-t.C:
	}
	return true
}

// take claims the newest status, or ends the service of the entry if there is none that the server lacks.
func (w *Writer) take(e *entry) (next, sent *v1.PodStatus, object types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next, e.next = e.next, nil
	if next != nil && e.sent != nil && Same(next, e.sent) {
		next = nil
	}
	if next == nil {
		e.busy = false
	}
	return next, e.sent, e.object
}

func (w *Writer) write(ctx context.Context, object types.UID, e *entry, s, sent *v1.PodStatus) error {
	if !urgent(sent, s) {
		if err := acquire(ctx, w.lesser); err != nil {
			return err
		}
		defer func() { <-w.lesser }()
	}
	if err := acquire(ctx, w.all); err != nil {
		return err
	}
	defer func() { <-w.all }()
	moved := sent == nil || len(sent.PodIPs) > 0 && !slices.Equal(sent.PodIPs, s.PodIPs)
	body, err := encode(object, s, moved)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return w.client.Patch(ctx, kube.Pods, e.ns, e.name, types.StrategicMergePatchType, body, nil, "status")
}

func acquire(ctx context.Context, tokens chan struct{}) error {
	select {
	case tokens <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
