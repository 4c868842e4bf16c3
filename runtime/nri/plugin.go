package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"worknode/fault"
)

// plugin is one plugin from its registration on.
type plugin struct {
	hub    *Hub
	conn   *conn
	config string
	ended  func() // ends what we have launched; nil for others

	launched bool // index and base are its file's

	registered  chan registration
	index, base string // 10, topology
	events      int32
	policy      failurePolicy
}

type registration struct {
	index, base string
	err         error
}

func (p *plugin) name() string { return p.index + "-" + p.base }

func (p *plugin) wants(e event) bool { return p.events>>(e-1)&1 != 0 }

func (p *plugin) closed() bool {
	select {
	case <-p.conn.done:
		return true
	default:
		return false
	}
}

func (p *plugin) close(why error) {
	p.conn.close(why)
	if p.ended != nil {
		p.ended()
	}
}

// join waits for the plugin to register, and configures it.
func (p *plugin) join(ctx context.Context) error {
	wait, stop := context.WithTimeout(ctx, p.hub.opt.RegistrationTimeout)
	defer stop()
	select {
	case r := <-p.registered:
		if r.err != nil {
			return r.err
		}
		if !p.launched {
			p.index, p.base = r.index, r.base
		}
	case <-p.conn.done:
		return errClosed
	case <-wait.Done():
		return fault.New(fault.Temporary, "it did not register within %v", p.hub.opt.RegistrationTimeout)
	}
	var reply configureResponse
	err := p.call(ctx, "Configure", &configureRequest{
		Config: p.config, RuntimeName: p.hub.opt.Runtime, RuntimeVersion: p.hub.opt.Version, NRIVersion: protocolVersion,
		RegistrationTimeout: p.hub.opt.RegistrationTimeout.Milliseconds(), RequestTimeout: p.hub.opt.RequestTimeout.Milliseconds(),
	}, &reply)
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	if p.events = reply.Events; p.events == 0 {
		p.events = allEvents
	}
	if extra := p.events &^ allEvents; extra != 0 {
		return fault.New(fault.Invalid, "configure: it subscribes to unknown events %#x", extra)
	}
	if reply.Policy != nil {
		p.policy = *reply.Policy
	}
	return nil
}

// call asks the plugin within its time. What it needs to join may take it as long as to register: it looks at all that
// is there, and one that is late would miss it all.
func (p *plugin) call(ctx context.Context, method string, request, reply any) error {
	limit := p.hub.opt.RequestTimeout
	if method == "Synchronize" || method == "Configure" {
		limit = max(limit, p.hub.opt.RegistrationTimeout)
	}
	ctx, stop := context.WithTimeout(ctx, limit)
	defer stop()
	return p.conn.call(ctx, method, request, reply)
}

// relay sends an event to a plugin that wants it. A plugin that does not answer loses its connection, and the request goes
// on without it, unless it has asked for another policy. answered tells whether reply holds something.
// Errors: what the plugin answered; with its policy, that it did not.
func (p *plugin) relay(ctx context.Context, e event, request, reply any) (answered bool, err error) {
	if !p.wants(e) || p.closed() {
		return false, nil
	}
	method := methods[e].name
	err = p.call(ctx, method, request, reply)
	var refused *refusal
	if errors.As(err, &refused) && refused.Code == codeUnimplemented && methods[e].plain {
		change := stateChange{Event: int32(e)}
		switch r := request.(type) {
		case *podRequest:
			change.Pod = r.Pod
		case *containerRequest:
			change.Pod, change.Container = r.Pod, r.Container
		}
		err = p.call(ctx, "StateChange", &change, &empty{})
	}
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &refused), ctx.Err() != nil: // the plugin is not to blame for a caller that left
		return false, fmt.Errorf("NRI plugin %s: %s: %w", p.name(), method, err)
	}
	return false, p.silent(method, err)
}

// silent deals with a plugin that did not answer.
func (p *plugin) silent(method string, err error) error {
	late := errors.Is(err, context.DeadlineExceeded)
	if late {
		err = fmt.Errorf("no answer within %v", p.hub.opt.RequestTimeout)
	}
	if !late || !p.policy.KeepConnected {
		slog.Error("NRI plugin is dropped", "plugin", p.name(), "request", method, "error", err)
		p.close(err)
	}
	if p.policy.FailRequest {
		return fault.New(fault.Temporary, "NRI plugin %s: %s: %w", p.name(), method, err)
	}
	return nil
}

// synchronize tells the plugin of all that is there, in as many messages as it takes.
func (p *plugin) synchronize(ctx context.Context, pods []*Pod, containers []*Container) ([]*Update, error) {
	for {
		request := synchronizeRequest{}
		size := 0
		for len(pods) > 0 && size < maxMessage/2 {
			size += len(encode(nil, pods[0]))
			request.Pods, pods = append(request.Pods, pods[0]), pods[1:]
		}
		for len(containers) > 0 && size < maxMessage/2 {
			size += len(encode(nil, containers[0]))
			request.Containers, containers = append(request.Containers, containers[0]), containers[1:]
		}
		request.More = len(pods)+len(containers) > 0
		var reply synchronizeResponse
		if err := p.call(ctx, "Synchronize", &request, &reply); err != nil {
			return nil, fmt.Errorf("synchronize: %w", err)
		}
		if !request.More {
			return reply.Update, nil
		}
		if !reply.More || len(reply.Update) > 0 {
			return nil, fault.New(fault.Unsupported, "synchronize: it does not know that there can be more than one message")
		}
	}
}

// serve answers the plugin's own calls.
func (p *plugin) serve(ctx context.Context, method string, payload []byte) ([]byte, error) {
	switch method {
	case "RegisterPlugin":
		var r registerRequest
		err := decode(payload, &r)
		if err == nil && !p.launched {
			err = checkName(r.Index, r.Name)
		}
		select {
		case p.registered <- registration{r.Index, r.Name, err}:
		default: // it has registered already
		}
		return nil, err
	case "UpdateContainers":
		var r updateContainersRequest
		if err := decode(payload, &r); err != nil {
			return nil, err
		}
		failed := await(ctx, p.hub.change("unsolicited", r.Update))
		p.hub.evict("unsolicited", r.Evict)
		return encode(nil, &updateContainersResponse{Failed: failed}), nil
	}
	return nil, fault.New(fault.Unsupported, "method %s is not one of the runtime's", method)
}

// checkName: an index of two digits gives the order, a name is what people see.
func checkName(index, name string) error {
	if len(index) != 2 || strings.Trim(index, "0123456789") != "" {
		return fault.New(fault.Invalid, "plugin index %q is not two digits", index)
	}
	if name == "" || strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-_.+") != "" {
		return fault.New(fault.Invalid, "plugin name %q is not letters, digits, '-', '_', '.', '+'", name)
	}
	return nil
}
