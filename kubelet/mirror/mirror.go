// Package mirror keeps a picture of each static pod in the API, so that the cluster sees what runs on the node: one mirror
// pod per static pod, made by the node, owned by its Node object, removed with the static pod. Deleting a mirror does not
// touch the static pod: a new picture takes its place.
//
// It decides nothing about the pods themselves. Source: Kubernetes docs, static pods; NodeRestriction admission, which
// refuses mirrors that are not marked as such, name other nodes, or are not owned by the Node.
package mirror

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"worknode/kube"
)

const (
	hashAnnotation   = "kubernetes.io/config.hash"
	mirrorAnnotation = "kubernetes.io/config.mirror"

	callTime   = 15 * time.Second
	retryFirst = 100 * time.Millisecond // the API server that the static pods are may just be starting
	retryMost  = 10 * time.Second
)

// Keeper is who keeps the mirrors. Its methods do not block and may be called from anywhere.
type Keeper struct {
	client *kube.Client
	node   string
	shown  func(static, mirror types.UID)
	wake   chan struct{}

	mu     sync.Mutex
	owner  types.UID // of the Node object; empty until it is registered
	synced bool      // every mirror that existed was Seen
	want   map[types.NamespacedName]*v1.Pod
	have   map[types.NamespacedName]*v1.Pod
}

// New returns a keeper that works once Run does. shown is called when the picture of a static pod is there or is another
// one; it must not block.
func New(client *kube.Client, node string, shown func(static, mirror types.UID)) *Keeper {
	return &Keeper{
		client: client, node: node, shown: shown, wake: make(chan struct{}, 1),
		want: map[types.NamespacedName]*v1.Pod{}, have: map[types.NamespacedName]*v1.Pod{},
	}
}

func name(pod *v1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}

// change is what all methods do: note something and look again.
func (k *Keeper) change(note func()) {
	k.mu.Lock()
	note()
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Registered says which Node object owns the mirrors.
func (k *Keeper) Registered(uid types.UID) { k.change(func() { k.owner = uid }) }

// Show asks for a picture of a static pod, in place of one of the same name.
func (k *Keeper) Show(static *v1.Pod) { k.change(func() { k.want[name(static)] = static }) }

// Hide says that the static pod is no more.
func (k *Keeper) Hide(static *v1.Pod) {
	k.change(func() {
		if w := k.want[name(static)]; w != nil && w.UID == static.UID {
			delete(k.want, name(static))
		}
	})
}

// Saw takes the news of a mirror pod in the API.
func (k *Keeper) Saw(mirror *v1.Pod) { k.change(func() { k.have[name(mirror)] = mirror }) }

// Lost takes the news that a mirror pod is gone from the API.
func (k *Keeper) Lost(mirror *v1.Pod) {
	k.change(func() {
		if h := k.have[name(mirror)]; h != nil && h.UID == mirror.UID {
			delete(k.have, name(mirror))
		}
	})
}

// Synced says that all mirrors that existed were Seen.
func (k *Keeper) Synced() { k.change(func() { k.synced = true }) }

// Run keeps the mirrors until ctx ends. Errors are logged once per pod and retried.
func (k *Keeper) Run(ctx context.Context) {
	wait := retryFirst
	said, told := map[types.NamespacedName]string{}, map[types.UID]types.UID{}
	for {
		var again <-chan time.Time
		k.tell(told)
		if k.turn(ctx, said) {
			wait = retryFirst
		} else {
			again = time.After(wait)
			wait = min(2*wait, retryMost)
		}
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-again:
		}
	}
}

// tell says which pictures are there and were not before.
func (k *Keeper) tell(told map[types.UID]types.UID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for uid := range told {
		if !slices.ContainsFunc(slices.Collect(maps.Values(k.want)), func(p *v1.Pod) bool { return p.UID == uid }) {
			delete(told, uid)
		}
	}
	for key, static := range k.want {
		if m := k.have[key]; m != nil && shows(m, static, k.owner) && told[static.UID] != m.UID {
			told[static.UID] = m.UID
			k.shown(static.UID, m.UID)
		}
	}
}

// turn does what is to be done now; false: something has to be tried again.
func (k *Keeper) turn(ctx context.Context, said map[types.NamespacedName]string) bool {
	k.mu.Lock()
	if k.owner == "" || !k.synced {
		k.mu.Unlock()
		return true // news of it wakes us
	}
	owner, want, have := k.owner, maps.Clone(k.want), maps.Clone(k.have)
	k.mu.Unlock()
	well := true
	for key, step := range steps(want, have, owner) {
		err := k.do(ctx, step, owner)
		switch {
		case err == nil:
			delete(said, key)
		case ctx.Err() == nil:
			well = false
			if said[key] != err.Error() {
				said[key] = err.Error()
				slog.Warn("mirror of a static pod, retrying", "pod", key.String(), "err", err)
			}
		}
	}
	return well
}

// step is what one name needs; at most one of the two.
type step struct {
	remove *v1.Pod // a mirror that shows nothing, or something else, or is being deleted
	create *v1.Pod // the static pod to show
}

// steps compares what static pods there are with their pictures. It is pure.
func steps(want, have map[types.NamespacedName]*v1.Pod, owner types.UID) map[types.NamespacedName]step {
	out := map[types.NamespacedName]step{}
	for key, mirror := range have {
		static := want[key]
		if static == nil || mirror.DeletionTimestamp != nil || !shows(mirror, static, owner) {
			out[key] = step{remove: mirror}
		}
	}
	for key, static := range want {
		if have[key] == nil {
			out[key] = step{create: static}
		}
	}
	return out
}

func shows(mirror, static *v1.Pod, owner types.UID) bool {
	ref := metav1.GetControllerOf(mirror)
	return mirror.Annotations[mirrorAnnotation] == static.Annotations[hashAnnotation] && ref != nil && ref.UID == owner
}

// do carries a step out and notes what came of it, so that the watch is not waited for.
func (k *Keeper) do(ctx context.Context, s step, owner types.UID) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if m := s.remove; m != nil {
		now := int64(0)
		err := k.client.Delete(ctx, kube.Pods, m.Namespace, m.Name, &metav1.DeleteOptions{
			GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &m.UID},
		})
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			k.Lost(m)
			return nil
		}
		return err
	}
	made := &v1.Pod{}
	err := k.client.Create(ctx, kube.Pods, s.create.Namespace, picture(s.create, k.node, owner), made)
	if apierrors.IsAlreadyExists(err) { // the watch will tell of it
		return nil
	}
	if err != nil {
		return err
	}
	slog.Info("mirror pod created", "pod", made.Namespace+"/"+made.Name, "uid", string(s.create.UID))
	k.Saw(made)
	return nil
}

// picture is the mirror of a static pod.
func picture(static *v1.Pod, node string, owner types.UID) *v1.Pod {
	yes := true
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: static.Name, Namespace: static.Namespace, Labels: static.Labels, Annotations: maps.Clone(static.Annotations),
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node, UID: owner, Controller: &yes}},
	}, Spec: static.Spec}
	pod.Annotations[mirrorAnnotation] = static.Annotations[hashAnnotation]
	return pod
}
