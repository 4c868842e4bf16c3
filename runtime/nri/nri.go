// Package nri lets plugins of the Node Resource Interface see, adjust and update containers. It is the runtime's side of
// the protocol, written for this runtime: docs/decisions/0003-nri.md says why and what is left out (WebAssembly).
//
// Requests go to the plugins one after the other, in the order of their indices, and one request at a time. A plugin that
// joins is told of all that is there while no request is under way, so each pod and container reaches it exactly once,
// those that are just being made included.
//
// Read nri.go (requests), plugin.go (one plugin), merge.go (what several of them want), conn.go (the wire).
// Source: github.com/containerd/nri 0.12, README.md and pkg/adaptation for behaviour that the README leaves open.
package nri

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"worknode/fault"
	"worknode/task"
)

// protocolVersion is the release of NRI that this package follows.
const protocolVersion = "v0.12.5"

// Options say where plugins are found and what they can do here.
type Options struct {
	Socket               string // unix socket that plugins connect to; empty: none
	PluginDir, ConfigDir string // programs to start (10-topology) and what they are told (10-topology.conf, topology.conf)
	Runtime, Version     string
	RegistrationTimeout  time.Duration // zero: five seconds
	RequestTimeout       time.Duration // zero: two seconds

	World  func() ([]*Pod, []*Container)        // all that is there now
	Update func(context.Context, *Update) error // changes the limits of a container
	Evict  func(id, reason, plugin string)      // stops a container, without waiting
}

// life is how far plugins have seen a pod or container come.
type life int

const (
	unseen life = iota
	alive
	stopped
)

// Hub knows the plugins.
type Hub struct {
	opt   Options
	tasks *task.Group

	turn   chan struct{}   // holds one token: whoever has it speaks with the plugins
	seen   map[string]life // for who has the turn
	joined atomic.Int32    // plugins; for who has nothing to say when there are none
	wake   chan struct{}   // there is something in queue

	mu      sync.Mutex
	plugins []*plugin
	making  map[string]making // told to plugins and not yet part of World
	queue   []changes         // a list without bound: who adds to it has the turn, and who works on it may wait for who waits for the turn
}

// making is a pod or container under way.
type making struct {
	pod       func() *Pod
	container func() *Container
}

// changes are updates that plugins want, in the order in which they want them.
type changes struct {
	plugin string
	list   []*Update
	failed chan []*Update // gets the answer
}

// New makes a hub; Start lets plugins in.
func New(opt Options, tasks *task.Group) *Hub {
	if opt.RegistrationTimeout <= 0 {
		opt.RegistrationTimeout = 5 * time.Second
	}
	if opt.RequestTimeout <= 0 {
		opt.RequestTimeout = 2 * time.Second
	}
	h := &Hub{opt: opt, tasks: tasks, turn: make(chan struct{}, 1), wake: make(chan struct{}, 1), seen: map[string]life{}, making: map[string]making{}}
	tasks.Go("NRI updates", h.applyUpdates)
	return h
}

// take waits for the turn. Errors: ctx's own.
func (h *Hub) take(ctx context.Context) error {
	select {
	case h.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fault.New(fault.Temporary, "NRI: the plugins are busy with another request: %w", ctx.Err())
	}
}

func (h *Hub) give() { <-h.turn }

// None tells that no plugin has to be asked.
func (h *Hub) None() bool { return h == nil || h.joined.Load() == 0 }

// list is the plugins in order.
func (h *Hub) list() []*plugin {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.plugins
}

// admit synchronizes a plugin and adds it.
func (h *Hub) admit(ctx context.Context, p *plugin) error {
	if err := h.take(ctx); err != nil {
		return err
	}
	defer h.give()
	pods, containers := h.world()
	updates, err := p.synchronize(ctx, pods, containers)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.plugins = append(slices.Clone(h.plugins), p)
	slices.SortStableFunc(h.plugins, func(a, b *plugin) int { return strings.Compare(a.index, b.index) })
	h.joined.Store(int32(len(h.plugins)))
	h.mu.Unlock()
	h.change(p.name(), updates)
	slog.Info("NRI plugin joined", "plugin", p.name(), "pods", len(pods), "containers", len(containers))
	return nil
}

// world is all that a new plugin must know of. The caller has the turn.
func (h *Hub) world() ([]*Pod, []*Container) {
	h.mu.Lock()
	under := maps.Clone(h.making) // first: what is recorded meanwhile is in both, and never in neither
	h.mu.Unlock()
	pods, containers := h.opt.World()
	for id, m := range under {
		if m.pod != nil && !slices.ContainsFunc(pods, func(p *Pod) bool { return p.ID == id }) {
			pods = append(pods, m.pod())
		}
		if m.container != nil && !slices.ContainsFunc(containers, func(c *Container) bool { return c.ID == id }) {
			containers = append(containers, m.container())
		}
	}
	for _, p := range pods {
		h.see(p.ID)
	}
	for _, c := range containers {
		h.see(c.ID)
	}
	return pods, containers
}

func (h *Hub) see(id string) {
	if h.seen[id] == unseen {
		h.seen[id] = alive
	}
}

// drop forgets a plugin whose connection has ended.
func (h *Hub) drop(p *plugin) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(h.plugins, p) {
		return
	}
	h.plugins = slices.DeleteFunc(slices.Clone(h.plugins), func(o *plugin) bool { return o == p })
	h.joined.Store(int32(len(h.plugins)))
	slog.Info("NRI plugin left", "plugin", p.name())
}

// tell relays an event that plugins can only refuse. The caller has the turn.
func (h *Hub) tell(ctx context.Context, e event, request any) error {
	for _, p := range h.list() {
		if _, err := p.relay(ctx, e, request, &empty{}); err != nil {
			return err
		}
	}
	return nil
}

// Pods and containers are given as functions: most of the time nobody asks for the message.

// RunPod tells of a pod that is ready except for its record. Whoever calls it calls Made or Unmade next.
// Errors: a plugin's refusal; all plugins then know that the pod is gone.
func (h *Hub) RunPod(ctx context.Context, id string, pod func() *Pod) error {
	if h == nil {
		return nil
	}
	if err := h.take(ctx); err != nil {
		return err
	}
	defer h.give()
	h.make(id, making{pod: pod})
	if h.None() {
		return nil
	}
	h.seen[id] = alive
	return h.tell(ctx, runPod, &podRequest{Pod: pod()})
}

// Made notes that World has a pod or container that was being made.
func (h *Hub) Made(id string) {
	if h == nil {
		return
	}
	h.unmake(id)
}

func (h *Hub) make(id string, m making) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.making[id] = m
}

func (h *Hub) unmake(id string) making {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.making[id]
	delete(h.making, id)
	return m
}

// Unmade notes that it will never be; plugins are told that it stopped and went.
func (h *Hub) Unmade(ctx context.Context, id string) {
	if h == nil {
		return
	}
	m := h.unmake(id)
	if m.container != nil {
		h.RemoveContainer(ctx, id, m.pod, m.container)
	} else if m.pod != nil {
		h.RemovePod(ctx, id, m.pod)
	}
}

// UpdatePod tells of new resources of a pod. Errors: a plugin's refusal.
func (h *Hub) UpdatePod(ctx context.Context, pod func() *Pod, overhead, resources *Resources) error {
	return h.inTurn(ctx, func() error {
		return h.tell(ctx, updatePod, &podRequest{Pod: pod(), Overhead: overhead, Resources: resources})
	})
}

// PostUpdatePod tells that a pod has its new resources.
func (h *Hub) PostUpdatePod(ctx context.Context, pod func() *Pod) {
	h.mention(ctx, func() error { return h.tell(ctx, postUpdatePod, &podRequest{Pod: pod()}) })
}

// StopPod tells, once, that a pod's containers have ended and its network is about to.
func (h *Hub) StopPod(ctx context.Context, id string, pod func() *Pod) {
	h.mention(ctx, func() error { return h.stopPod(ctx, id, pod) })
}

func (h *Hub) stopPod(ctx context.Context, id string, pod func() *Pod) error {
	if h.seen[id] != alive {
		return nil
	}
	h.seen[id] = stopped
	return h.tell(ctx, stopPod, &podRequest{Pod: pod()})
}

// RemovePod tells, once, that a pod is gone.
func (h *Hub) RemovePod(ctx context.Context, id string, pod func() *Pod) {
	h.mention(ctx, func() error {
		err := h.stopPod(ctx, id, pod)
		if h.seen[id] != stopped {
			return err
		}
		delete(h.seen, id)
		return errors.Join(err, h.tell(ctx, removePod, &podRequest{Pod: pod()}))
	})
}

// Container events.

// PostCreate tells of a container that is made, adjustments and all.
func (h *Hub) PostCreate(ctx context.Context, pod func() *Pod, container func() *Container) {
	h.mention(ctx, func() error {
		return h.tell(ctx, postCreateContainer, &containerRequest{Pod: pod(), Container: container()})
	})
}

// StartContainer tells of a container that is about to start. Errors: a plugin's refusal.
func (h *Hub) StartContainer(ctx context.Context, pod func() *Pod, container func() *Container) error {
	return h.inTurn(ctx, func() error {
		return h.tell(ctx, startContainer, &containerRequest{Pod: pod(), Container: container()})
	})
}

// PostStart tells of a container that runs.
func (h *Hub) PostStart(ctx context.Context, pod func() *Pod, container func() *Container) {
	h.mention(ctx, func() error {
		return h.tell(ctx, postStartContainer, &containerRequest{Pod: pod(), Container: container()})
	})
}

// PostUpdate tells of a container that has its new limits.
func (h *Hub) PostUpdate(ctx context.Context, pod func() *Pod, container func() *Container) {
	h.mention(ctx, func() error {
		return h.tell(ctx, postUpdateContainer, &containerRequest{Pod: pod(), Container: container()})
	})
}

// StopContainer tells, once, that a container has ended; plugins may then change others.
func (h *Hub) StopContainer(ctx context.Context, id string, pod func() *Pod, container func() *Container) {
	h.mention(ctx, func() error { return h.stopContainer(ctx, id, pod, container) })
}

func (h *Hub) stopContainer(ctx context.Context, id string, pod func() *Pod, container func() *Container) error {
	if h.seen[id] != alive {
		return nil
	}
	h.seen[id] = stopped
	request := &containerRequest{Pod: pod(), Container: container()}
	m := mergeUpdate("", nil)
	for _, p := range h.list() {
		var reply updateResponse
		answered, err := p.relay(ctx, stopContainer, request, &reply)
		if err == nil && answered {
			err = m.addUpdates(reply.Update, p.name())
		}
		if err != nil {
			return err
		}
	}
	h.change("plugins", m.updates)
	return nil
}

// RemoveContainer tells, once, that a container is gone.
func (h *Hub) RemoveContainer(ctx context.Context, id string, pod func() *Pod, container func() *Container) {
	h.mention(ctx, func() error {
		err := h.stopContainer(ctx, id, pod, container)
		if h.seen[id] != stopped {
			return err
		}
		delete(h.seen, id)
		return errors.Join(err, h.tell(ctx, removeContainer, &containerRequest{Pod: pod(), Container: container()}))
	})
}

// inTurn runs fn with the turn, unless there is no plugin.
func (h *Hub) inTurn(ctx context.Context, fn func() error) error {
	if h.None() {
		return nil
	}
	if err := h.take(ctx); err != nil {
		return err
	}
	defer h.give()
	return fn()
}

// mention is inTurn for what has happened: nobody can refuse it any more.
func (h *Hub) mention(ctx context.Context, fn func() error) {
	if err := h.inTurn(ctx, fn); err != nil {
		slog.Warn("NRI plugin objects to what has happened", "error", err)
	}
}
