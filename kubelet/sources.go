package kubelet

import (
	"context"
	"log/slog"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"worknode/kube"
	"worknode/kubelet/config"
	"worknode/kubelet/mirror"
	"worknode/kubelet/source"
	"worknode/task"
)

// sources brings the pods of all places into one room: those of the API server go straight in, their mirrors to the
// keeper; static pods go in too, and are shown by the keeper. The room hears Synced when every source has told its pods,
// so that nothing is ended as unknown before.
type sources struct {
	room   *room
	mirror *mirror.Keeper

	mu    sync.Mutex
	await int // sources that have not told all yet
	next  map[types.NamespacedName]*v1.Pod
}

// follow starts all sources.
func (s *sources) follow(tasks *task.Group, client *kube.Client, node string, c *config.Configuration) {
	s.await = 1
	if c.StaticPodPath != "" {
		s.await++
	}
	if c.StaticPodURL != "" {
		s.await++
	}
	tasks.Go("pods", func(ctx context.Context) { source.API(ctx, client, node, fromAPI{s}) })
	if c.StaticPodPath != "" {
		tasks.Go("static pods", func(ctx context.Context) {
			source.Folder(ctx, c.StaticPodPath, node, c.FileCheckFrequency.Duration, static{s})
		})
	}
	if c.StaticPodURL != "" {
		tasks.Go("static pods of "+c.StaticPodURL, func(ctx context.Context) {
			source.Web(ctx, c.StaticPodURL, c.StaticPodURLHeader, node, c.HTTPCheckFrequency.Duration, static{s})
		})
	}
	tasks.Go("mirror pods", s.mirror.Run)
}

func (s *sources) synced() {
	s.mu.Lock()
	s.await--
	all := s.await == 0
	s.mu.Unlock()
	if all {
		s.room.Synced()
	}
}

// fromAPI takes what the API server says.
type fromAPI struct{ *sources }

func (s fromAPI) Put(pod *v1.Pod) {
	if source.IsMirror(pod) {
		s.mirror.Saw(pod)
		return
	}
	s.room.Put(pod)
}

// Gone: a mirror and another pod are told apart by their UIDs, which are never the same.
func (s fromAPI) Gone(pod *v1.Pod) {
	s.mirror.Lost(pod)
	s.room.Gone(pod)
}

func (s fromAPI) Synced() {
	s.mirror.Synced()
	s.synced()
}

// static takes what a folder or a web address says.
type static struct{ *sources }

// Put starts a static pod, but not while an earlier one of its name is still there: two etcds on one port would not do.
// Source: Kubernetes docs, static pods; upstream starts those of one full name in order too.
func (s static) Put(pod *v1.Pod) {
	s.mirror.Show(pod)
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room.displace(key, pod.UID)
	if s.room.holds(key) {
		slog.Info("static pod waits until the earlier one of its name is gone", "pod", key.String(), "uid", string(pod.UID))
		s.next[key] = pod
		return
	}
	s.room.Put(pod)
}

func (s static) Gone(pod *v1.Pod) {
	s.mirror.Hide(pod)
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	s.mu.Lock()
	if w := s.next[key]; w != nil && w.UID == pod.UID {
		delete(s.next, key)
	}
	s.mu.Unlock()
	s.room.Gone(pod)
}

func (s static) Synced() { s.synced() }

// left starts the static pod that waited for one that is gone now.
func (s *sources) left(pod *v1.Pod) {
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	s.mu.Lock()
	defer s.mu.Unlock()
	if next := s.next[key]; next != nil && !s.room.holds(key) {
		delete(s.next, key)
		s.room.Put(next)
	}
}
