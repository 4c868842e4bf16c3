package kube

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// Where selects objects: one namespace (empty: all), a field selector and a label selector in the API's syntax.
type Where struct{ Namespace, Field, Label string }

// Op is what happened to an object.
type Op int

const (
	Put    Op = iota // the object is new or changed
	Delete           // the object is gone; after a gap in the watch only its name, namespace and uid are known
	Synced           // everything that existed at the start has been delivered; sent once, without an object
)

// Delta is one change. The receiver owns Object, which nobody else holds, but must not block: it is called in order,
// on the goroutine that reads the watch.
type Delta struct {
	Op     Op
	Object runtime.Object
}

const (
	retryFirst = 20 * time.Millisecond // a local API is back within milliseconds
	retryMost  = 5 * time.Second
	watchFor   = 8 * time.Minute // the server ends the watch after this, plus up to as much again
)

type seen struct {
	uid types.UID
	rv  string
}

type follower struct {
	client *Client
	r      Resource
	where  Where
	send   func(Delta)
	known  map[types.NamespacedName]seen
	rv     string // resume the watch here; empty: list first
	synced bool
}

// Follow lists and then watches a resource until ctx ends, and delivers every change exactly once per resource version.
// A broken connection is taken up where it ended; a gap is closed by a new list, compared with what was delivered.
// It never gives up: errors are logged once per outage and retried with back-off.
func Follow(ctx context.Context, c *Client, r Resource, where Where, send func(Delta)) {
	f := &follower{client: c, r: r, where: where, send: send, known: map[types.NamespacedName]seen{}}
	wait, down := retryFirst, false
	for ctx.Err() == nil {
		progress, err := f.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if progress {
			if down {
				slog.Info("API watch is back", "resource", r.Name)
			}
			wait, down = retryFirst, false
		}
		if err == nil {
			continue
		}
		// The node authorizer learns of a pod and what it names at the same time as the node does, and may be the later of
		// the two: being refused at first is no news.
		if early := apierrors.IsForbidden(err) && wait < 8*retryFirst; !down && !early {
			down = true
			slog.Warn("API watch broke, retrying", "resource", r.Name, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait/2+1)):
		}
		wait = min(2*wait, retryMost)
	}
}

// once lists if it must and reads one watch to its end. progress says that the server answered.
func (f *follower) once(ctx context.Context) (progress bool, err error) {
	if f.rv == "" {
		if err := f.list(ctx); err != nil {
			return false, fmt.Errorf("list %s: %w", f.r.Name, err)
		}
		progress = true
	}
	seconds := int64((watchFor + rand.N(watchFor)).Seconds())
	options := metav1.ListOptions{
		Watch: true, ResourceVersion: f.rv, AllowWatchBookmarks: true, TimeoutSeconds: &seconds,
		FieldSelector: f.where.Field, LabelSelector: f.where.Label,
	}
	stream, err := f.request().VersionedParams(&options, f.client.params).Watch(ctx)
	if err != nil {
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			f.rv = ""
			return true, nil
		}
		return progress, fmt.Errorf("watch %s: %w", f.r.Name, err)
	}
	defer stream.Stop()
	for event := range stream.ResultChan() {
		progress = true
		if err := f.event(event); err != nil {
			return progress, err
		}
	}
	return progress, nil
}

func (f *follower) event(event watch.Event) error {
	switch event.Type {
	case watch.Error:
		err := apierrors.FromObject(event.Object)
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			f.rv = ""
			return nil
		}
		f.rv = "" // whatever the server meant, a list is the safe way on
		return fmt.Errorf("watch %s: %w", f.r.Name, err)
	case watch.Bookmark:
		if m, err := meta.Accessor(event.Object); err == nil {
			f.rv = m.GetResourceVersion()
		}
		return nil
	}
	m, err := meta.Accessor(event.Object)
	if err != nil {
		return fmt.Errorf("watch %s: %T is not an object: %w", f.r.Name, event.Object, err)
	}
	key := types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()}
	f.rv = m.GetResourceVersion()
	if event.Type == watch.Deleted {
		delete(f.known, key)
		f.send(Delta{Delete, event.Object})
		return nil
	}
	f.known[key] = seen{m.GetUID(), f.rv}
	f.send(Delta{Put, event.Object})
	return nil
}

// pageSize bounds how many objects are decoded before the first of them is delivered: a cluster's worth of them at once
// would take several times the memory of what is kept.
const pageSize = 500

// list reads all objects, page by page, and delivers what is new, changed or gone. Of a first list each page is delivered
// as it comes; later, what is gone is delivered first.
func (f *follower) list(ctx context.Context) error {
	first := len(f.known) == 0
	here := make(map[types.NamespacedName]seen, len(f.known))
	if first {
		here = f.known // should a page fail, the next list knows what was delivered
	}
	var put []runtime.Object
	each := func(obj runtime.Object) error {
		m, err := meta.Accessor(obj)
		if err != nil {
			return err
		}
		key := types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()}
		now := seen{m.GetUID(), m.GetResourceVersion()}
		if first {
			here[key] = now
			f.send(Delta{Put, obj})
			return nil
		}
		here[key] = now
		was, had := f.known[key]
		if had && was.uid != now.uid {
			f.gone(key, was)
		}
		if !had || was != now {
			put = append(put, obj)
		}
		return nil
	}
	rv := ""
	for page := ""; ; {
		list := f.r.NewList()
		if err := f.client.page(f.r, f.where, page).Do(ctx).Into(list); err != nil {
			return err
		}
		lm, err := meta.ListAccessor(list)
		if err != nil {
			return err
		}
		if err := meta.EachListItem(list, each); err != nil {
			return err
		}
		rv = lm.GetResourceVersion()
		if page = lm.GetContinue(); page == "" {
			break
		}
	}
	for key, was := range f.known {
		if _, still := here[key]; !still {
			f.gone(key, was)
		}
	}
	for _, obj := range put {
		f.send(Delta{Put, obj})
	}
	f.known, f.rv = here, rv
	if !f.synced {
		f.synced = true
		f.send(Delta{Op: Synced})
	}
	return nil
}

// gone reports an object that vanished while nobody watched.
func (f *follower) gone(key types.NamespacedName, was seen) {
	obj := f.r.New()
	if m, err := meta.Accessor(obj); err == nil {
		m.SetNamespace(key.Namespace)
		m.SetName(key.Name)
		m.SetUID(was.uid)
	}
	f.send(Delta{Delete, obj})
}

func (f *follower) request() *rest.Request {
	return f.client.groups[f.r.Group].Get().NamespaceIfScoped(f.where.Namespace, f.r.Namespaced && f.where.Namespace != "").Resource(f.r.Name)
}

func (c *Client) listing(r Resource, where Where) *rest.Request {
	return c.list(r, where, metav1.ListOptions{})
}

// page is a list of at most pageSize objects, from where another one ended.
func (c *Client) page(r Resource, where Where, from string) *rest.Request {
	return c.list(r, where, metav1.ListOptions{Limit: pageSize, Continue: from})
}

func (c *Client) list(r Resource, where Where, options metav1.ListOptions) *rest.Request {
	options.FieldSelector, options.LabelSelector = where.Field, where.Label
	return c.groups[r.Group].Verb(http.MethodGet).NamespaceIfScoped(where.Namespace, r.Namespaced && where.Namespace != "").
		Resource(r.Name).VersionedParams(&options, c.params)
}
