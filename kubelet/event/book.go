package event

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The bounds. What lies beyond them is dropped and counted.
const (
	burst       = 25              // events about one object at once, and afterwards
	refill      = 5 * time.Minute // one more each; the field knows these two from upstream's spam filter
	waitMost    = 1000            // events not yet written
	rememberFor = time.Hour       // after this the API server has forgotten the event, so a repetition is a new one
	remember    = 1000            // events that a repetition is added to
	objectsMost = 4000            // objects whose rate is known
	messageMost = 4 << 10         // bytes
)

// same is what makes two events one with a higher count.
type same struct {
	object                v1.ObjectReference
	kind, reason, message string
}

// entry is one event as the API server has it or will have it.
type entry struct {
	same
	name        string
	count       int32
	first, last time.Time
	stored      bool // a create succeeded, so the rest are patches
	waiting     bool // in the queue
}

// bucket bounds the events about one object.
type bucket struct {
	left float64
	at   time.Time
}

func (b *bucket) take(now time.Time) bool {
	b.left = min(burst, b.left+now.Sub(b.at).Seconds()/refill.Seconds())
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// book counts events and queues what must be written. It is pure but for its own maps; the Recorder guards it.
type book struct {
	entries map[same]*entry
	objects map[string]*bucket
	queue   []*entry
}

func newBook() *book { return &book{entries: map[same]*entry{}, objects: map[string]*bucket{}} }

// add books one event and reports whether it was accepted.
func (b *book) add(now time.Time, ref v1.ObjectReference, kind, reason, message string) bool {
	if len(message) > messageMost {
		message = strings.ToValidUTF8(message[:messageMost], "")
	}
	ref.ResourceVersion = "" // it changes with every status and would keep repetitions apart
	if !b.bucketOf(ref, now).take(now) {
		return false
	}
	k := same{ref, kind, reason, message}
	e := b.entries[k]
	if e != nil && now.Sub(e.last) > rememberFor {
		delete(b.entries, k)
		e = nil
	}
	if e == nil {
		if len(b.queue) >= waitMost {
			return false
		}
		if len(b.entries) >= remember {
			b.forget(now)
		}
		e = &entry{same: k, name: fmt.Sprintf("%s.%x", ref.Name, now.UnixNano()), first: now}
		b.entries[k] = e
	}
	e.count++
	e.last = now
	if !e.waiting {
		if len(b.queue) >= waitMost {
			return false
		}
		e.waiting = true
		b.queue = append(b.queue, e)
	}
	return true
}

// next takes the event that waits longest, as it is now.
func (b *book) next() (e *entry, copied entry, ok bool) {
	if len(b.queue) == 0 {
		return nil, entry{}, false
	}
	e = b.queue[0]
	b.queue[0] = nil
	b.queue = b.queue[1:]
	e.waiting = false
	return e, *e, true
}

// again puts an event back to the front, when it could not be written.
func (b *book) again(e *entry) {
	if !e.waiting {
		e.waiting = true
		b.queue = append([]*entry{e}, b.queue...)
	}
}

func (b *book) bucketOf(ref v1.ObjectReference, now time.Time) *bucket {
	key := ref.Kind + "/" + ref.Namespace + "/" + ref.Name + "/" + string(ref.UID)
	o := b.objects[key]
	if o == nil {
		if len(b.objects) >= objectsMost {
			b.forgetObjects(now)
		}
		o = &bucket{burst, now}
		b.objects[key] = o
	}
	return o
}

// forget makes room: first what is old, then, if that is not enough, everything; a repetition then begins anew.
func (b *book) forget(now time.Time) {
	for _, age := range []time.Duration{rememberFor, 10 * time.Minute, time.Minute, 0} {
		for k, e := range b.entries {
			if now.Sub(e.last) >= age {
				delete(b.entries, k)
			}
		}
		if len(b.entries) < remember*3/4 {
			return
		}
	}
}

func (b *book) forgetObjects(now time.Time) {
	for _, age := range []time.Duration{burst * refill, time.Hour, 5 * time.Minute, 0} {
		for k, o := range b.objects {
			if now.Sub(o.at) >= age {
				delete(b.objects, k)
			}
		}
		if len(b.objects) < objectsMost*3/4 {
			return
		}
	}
}

// object is the entry in the API's form.
func (e *entry) object(component, host string) *v1.Event {
	ns := e.same.object.Namespace
	if ns == "" {
		ns = metav1.NamespaceDefault // events about objects outside namespaces, such as nodes, live here
	}
	return &v1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: ns, Name: e.name},
		InvolvedObject:      e.same.object,
		Type:                e.kind,
		Reason:              e.reason,
		Message:             e.message,
		Count:               e.count,
		FirstTimestamp:      metav1.NewTime(e.first),
		LastTimestamp:       metav1.NewTime(e.last),
		Source:              v1.EventSource{Component: component, Host: host},
		ReportingController: component,
		ReportingInstance:   host,
	}
}
