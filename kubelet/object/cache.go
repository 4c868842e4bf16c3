// Package object keeps the ConfigMaps and Secrets that live pods name, and all Services, as the API server has them.
//
// A node may watch only objects that its pods name (node authorizer), so there is one watch per object, shared by all
// pods that name it; it ends with the last of them, and at once if the object is immutable. The cache does not decide
// what a change means: it tells who asked to be told.
package object

import (
	"context"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"worknode/fault"
	"worknode/kube"
	"worknode/task"
)

// Kinds of objects the cache holds, as changed reports them.
const (
	KindConfigMap = "ConfigMap"
	KindSecret    = "Secret"
)

// firstSync bounds the wait of a reader for the first answer of the API server.
const firstSync = 10 * time.Second

// Key names one object.
type Key struct{ Kind, Namespace, Name string }

// Cache holds objects in memory; all its methods are safe for concurrent use.
// Objects it returns are shared: read them, do not change them.
type Cache struct {
	client  *kube.Client
	changed func(ns, kind, name string)
	tasks   *task.Group

	mu       sync.Mutex
	entries  map[Key]*entry
	users    map[types.UID][]Key
	tokens   map[tokenKey]token
	services services
}

// entry is one object somebody uses. object is nil while the API server has none.
type entry struct {
	users  int
	stop   context.CancelFunc
	synced chan struct{} // closed at the first answer
	known  bool          // synced is closed
	object runtime.Object
}

// New returns an empty cache whose watches end with ctx. changed is called for every change after the first answer, from
// the watch's goroutine: it must not block and must not call the cache's Use or Drop.
func New(ctx context.Context, client *kube.Client, changed func(ns, kind, name string)) *Cache {
	return &Cache{
		client: client, changed: changed, tasks: task.New(ctx),
		entries: map[Key]*entry{}, users: map[types.UID][]Key{}, tokens: map[tokenKey]token{}, services: newServices(),
	}
}

// Wait returns when all watches have ended, after the context of New has.
func (c *Cache) Wait() { c.tasks.Wait() }

// Use keeps current what the pod names, until Drop. Called again for the same pod it follows a changed spec.
func (c *Cache) Use(pod *v1.Pod) {
	want := References(pod)
	c.mu.Lock()
	defer c.mu.Unlock()
	had := c.users[pod.UID]
	for _, k := range want { // before releasing: what both name keeps its watch
		c.acquire(k)
	}
	for _, k := range had {
		c.release(k)
	}
	c.users[pod.UID] = want
}

// Drop ends a pod's use. Repeat: safe.
func (c *Cache) Drop(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.users[uid] {
		c.release(k)
	}
	delete(c.users, uid)
	c.dropTokens(uid)
}

// Users returns the pods that name an object; for KindToken those that were given one.
func (c *Cache) Users(ns, kind, name string) []types.UID {
	key := Key{kind, ns, name}
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []types.UID
	if kind == KindToken {
		for k := range c.tokens {
			if k.namespace == ns && k.pod == name {
				out = append(out, k.uid)
			}
		}
		return out
	}
	for uid, keys := range c.users {
		for _, k := range keys {
			if k == key {
				out = append(out, uid)
				break
			}
		}
	}
	return out
}

// acquire and release need mu.
func (c *Cache) acquire(key Key) {
	if e := c.entries[key]; e != nil {
		e.users++
		return
	}
	ctx, stop := context.WithCancel(c.tasks.Context())
	e := &entry{users: 1, stop: stop, synced: make(chan struct{})}
	c.entries[key] = e
	c.tasks.Go("watch "+key.Kind+" "+key.Namespace+"/"+key.Name, func(context.Context) { c.follow(ctx, key, e) })
}

func (c *Cache) release(key Key) {
	e := c.entries[key]
	if e.users--; e.users == 0 {
		e.stop()
		delete(c.entries, key)
	}
}

func (c *Cache) follow(ctx context.Context, key Key, e *entry) {
	r := kube.ConfigMaps
	if key.Kind == KindSecret {
		r = kube.Secrets
	}
	where := kube.Where{Namespace: key.Namespace, Field: "metadata.name=" + key.Name}
	kube.Follow(ctx, c.client, r, where, func(d kube.Delta) {
		if c.apply(e, d) {
			c.changed(key.Namespace, key.Kind, key.Name)
		}
	})
}

// apply notes a change and says whether it is news to readers: the first answer is not, they wait for it.
func (c *Cache) apply(e *entry, d kube.Delta) (news bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch d.Op {
	case kube.Put:
		if m, err := meta.Accessor(d.Object); err == nil {
			m.SetManagedFields(nil) // often larger than the data, and nobody here reads it
		}
		e.object = d.Object
		if immutable(d.Object) {
			e.stop() // it can only be deleted, and running pods keep what they have
		}
	case kube.Delete:
		e.object = nil
	}
	if e.known {
		return d.Op != kube.Synced
	}
	// A watch for one object: the object itself ends the wait as well as the end of the list.
	e.known = true
	close(e.synced)
	return false
}

func immutable(o runtime.Object) bool {
	var flag *bool
	switch o := o.(type) {
	case *v1.ConfigMap:
		flag = o.Immutable
	case *v1.Secret:
		flag = o.Immutable
	}
	return flag != nil && *flag
}

// ConfigMap returns an object, waiting for the first answer of the API server if there was none yet.
// An object that no pod in Use names is read from the API server directly.
// Errors: NotFound; Temporary if the API server does not answer in time.
func (c *Cache) ConfigMap(ctx context.Context, ns, name string) (*v1.ConfigMap, error) {
	o, err := c.get(ctx, Key{KindConfigMap, ns, name}, kube.ConfigMaps, "configmap")
	if err != nil {
		return nil, err
	}
	return o.(*v1.ConfigMap), nil
}

// Secret is ConfigMap for Secrets.
func (c *Cache) Secret(ctx context.Context, ns, name string) (*v1.Secret, error) {
	o, err := c.get(ctx, Key{KindSecret, ns, name}, kube.Secrets, "secret")
	if err != nil {
		return nil, err
	}
	return o.(*v1.Secret), nil
}

func (c *Cache) get(ctx context.Context, key Key, r kube.Resource, word string) (runtime.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, firstSync)
	defer cancel()
	c.mu.Lock()
	e := c.entries[key]
	c.mu.Unlock()
	if e == nil {
		return c.read(ctx, key, r, word)
	}
	select {
	case <-e.synced:
	case <-ctx.Done():
		return nil, fault.New(fault.Temporary, "%s %q: no answer from the API server: %w", word, key.Name, ctx.Err())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.object == nil {
		return nil, fault.New(fault.NotFound, "%s %q not found", word, key.Name)
	}
	return e.object, nil
}

func (c *Cache) read(ctx context.Context, key Key, r kube.Resource, word string) (runtime.Object, error) {
	o := r.New()
	err := c.client.Get(ctx, r, key.Namespace, key.Name, o)
	switch {
	case apierrors.IsNotFound(err):
		return nil, fault.New(fault.NotFound, "%s %q not found", word, key.Name)
	case err != nil:
		return nil, fault.New(fault.Temporary, "%s %q: %w", word, key.Name, err)
	}
	return o, nil
}

// With returns the cache as translate reads it: without a context of its own.
func (c *Cache) With(ctx context.Context) View { return View{ctx, c} }

// View is a Cache bound to the context of one action.
type View struct {
	ctx   context.Context
	cache *Cache
}

// ConfigMap is Cache.ConfigMap.
func (v View) ConfigMap(ns, name string) (*v1.ConfigMap, error) {
	return v.cache.ConfigMap(v.ctx, ns, name)
}

// Secret is Cache.Secret.
func (v View) Secret(ns, name string) (*v1.Secret, error) { return v.cache.Secret(v.ctx, ns, name) }
