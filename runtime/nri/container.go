package nri

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"worknode/fault"
)

// CreateContainer lets plugins adjust a container, and change or evict others, which is done when it returns. Whoever calls
// it calls Made or Unmade next. The adjustment is nil if there is none.
// Errors: a plugin's refusal, two plugins that want different things, a validator that is against it.
func (h *Hub) CreateContainer(ctx context.Context, id string, pod func() *Pod, container func() *Container) (*Adjustment, error) {
	if h == nil {
		return nil, nil
	}
	adjust, done, err := h.create(ctx, id, pod, container)
	if err == nil { // the turn is given back: who applies updates may need locks whose holders wait for it
		await(ctx, done)
	}
	return adjust, err
}

func (h *Hub) create(ctx context.Context, id string, pod func() *Pod, container func() *Container) (*Adjustment, <-chan []*Update, error) {
	if err := h.take(ctx); err != nil {
		return nil, nil, err
	}
	defer h.give()
	h.make(id, making{pod: pod, container: container})
	if h.None() {
		return nil, nil, nil
	}
	h.seen[id] = alive
	request := &containerRequest{Pod: pod(), Container: container()}
	check := &validateRequest{Pod: request.Pod, Container: container()}
	m := mergeCreate(request.Container)
	h.make(id, making{pod: pod, container: func() *Container { return m.create }}) // as adjusted
	evict := map[string][]*Eviction{}
	for _, p := range h.list() {
		check.Plugins = append(check.Plugins, &pluginInstance{Name: p.base, Index: p.index})
		var reply createResponse
		answered, err := p.relay(ctx, createContainer, request, &reply)
		if err == nil && answered {
			evict[p.name()] = reply.Evict
			if err = m.addAdjustment(reply.Adjust, p.name()); err == nil {
				err = m.addUpdates(reply.Update, p.name())
			}
		}
		if err != nil {
			return nil, nil, err
		}
	}
	check.Adjust, check.Update, check.Owners = m.adjust, m.updates, &owningPlugins{Owners: m.owners}
	if err := h.validate(ctx, check); err != nil {
		return nil, nil, err
	}
	for name, list := range evict {
		h.evict(name, list)
	}
	return m.adjust, h.change("plugins", m.updates), nil
}

// validate asks the validators, all at once. One that does not answer is one that is against it.
func (h *Hub) validate(ctx context.Context, request *validateRequest) error {
	var all sync.WaitGroup
	plugins := h.list()
	errs := make([]error, len(plugins))
	for i, p := range plugins {
		if !p.wants(validate) || p.closed() {
			continue
		}
		all.Go(func() {
			var reply validateResponse
			err := p.call(ctx, methods[validate].name, request, &reply)
			var refused *refusal
			switch {
			case err != nil && !errors.As(err, &refused) && ctx.Err() == nil:
				errs[i] = errors.Join(fmt.Errorf("NRI validator %s: %w", p.name(), err), p.silent(methods[validate].name, err))
			case err != nil:
				errs[i] = fmt.Errorf("NRI validator %s: %w", p.name(), err)
			case reply.Reject:
				errs[i] = fault.New(fault.Denied, "NRI validator %s is against the container's adjustment: %s", p.name(), reply.Reason)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// UpdateContainer lets plugins change an update of a container's limits, and others' limits too, which is done when it
// returns. The result is nil if the update stays as it is.
// Errors: a plugin's refusal, two plugins that want different things.
func (h *Hub) UpdateContainer(ctx context.Context, id string, pod func() *Pod, container func() *Container, limits *Resources) (*Resources, error) {
	if h.None() {
		return nil, nil
	}
	out, done, err := h.updated(ctx, id, pod, container, limits)
	if err == nil {
		await(ctx, done)
	}
	return out, err
}

func (h *Hub) updated(ctx context.Context, id string, pod func() *Pod, container func() *Container, limits *Resources) (*Resources, <-chan []*Update, error) {
	if err := h.take(ctx); err != nil {
		return nil, nil, err
	}
	defer h.give()
	m := mergeUpdate(id, limits)
	evict := map[string][]*Eviction{}
	for _, p := range h.list() {
		var reply updateResponse
		answered, err := p.relay(ctx, updateContainer, &containerRequest{Pod: pod(), Container: container(), Resources: m.limits}, &reply)
		if err == nil && answered {
			evict[p.name()] = reply.Evict
			err = m.addUpdates(reply.Update, p.name())
		}
		if err != nil {
			return nil, nil, err
		}
	}
	for name, list := range evict {
		h.evict(name, list)
	}
	if m.limits == limits {
		return nil, h.change("plugins", m.updates), nil
	}
	return m.limits, h.change("plugins", m.updates), nil
}

// change queues updates; the channel, nil if there are none, tells when they are done and which have failed.
func (h *Hub) change(plugin string, list []*Update) <-chan []*Update {
	if len(list) == 0 {
		return nil
	}
	c := changes{plugin: plugin, list: list, failed: make(chan []*Update, 1)}
	h.mu.Lock()
	h.queue = append(h.queue, c)
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
	return c.failed
}

// await waits for queued updates; nil is none. What has not been done when ctx ends counts as done: it is in the queue.
func await(ctx context.Context, done <-chan []*Update) (failed []*Update) {
	if done != nil {
		select {
		case failed = <-done:
		case <-ctx.Done():
		}
	}
	return failed
}

func (h *Hub) evict(plugin string, list []*Eviction) {
	for _, e := range list {
		h.opt.Evict(e.ID, e.Reason, plugin)
	}
}
