package runtime

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/monitor/wire"
	"worknode/runtime/handler"
	"worknode/runtime/plan"
	"worknode/runtime/state"
)

// openHandlers takes the handlers of the configuration and asks each what it can do, beside all else: one that hangs
// delays nobody.
func (l *loop) openHandlers() error {
	if err := handler.Check(l.opt.Handlers); err != nil {
		return err
	}
	l.handlers, l.features = map[string]handler.Config{}, map[string]handler.Features{}
	for _, c := range l.opt.Handlers {
		l.handlers[c.Name] = c
		if c.Root == "" {
			c.Root = l.opt.Run
		}
		l.tasks.Go("probe handler "+c.Name, func(ctx context.Context) {
			f, err := c.Probe(ctx)
			if err != nil {
				slog.Warn("handler does not tell what it can do, it is taken for the least", "handler", c.Name, "error", err)
				return
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.features[c.Name] = f
		})
	}
	return nil
}

func (l *loop) handlerNames() []string { return slices.Sorted(maps.Keys(l.handlers)) }

// Handlers are those beside the native one, for Status.
func (l *loop) Handlers() []*cri.RuntimeHandler {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*cri.RuntimeHandler
	for _, name := range l.handlerNames() {
		out = append(out, &cri.RuntimeHandler{Name: name, Features: &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: l.features[name].RecursiveReadOnly}})
	}
	return out
}

// start is what the monitor takes for a container, by the handler of its sandbox. None is ever replaced by another.
func (l *loop) start(s *state.Sandbox, c *state.Container, made plan.Made) (wire.Start, error) {
	if s.Handler == "" {
		start, err := l.hands.Start(c, made, l.images.Base())
		if err == nil {
			start.Init.Cgroup = l.hands.Tree.ProcsFiles(c.Cgroup)
		}
		return start, err
	}
	with, ok := l.handlers[s.Handler]
	if !ok {
		return wire.Start{}, fault.Hint(fault.New(fault.Invalid, "sandbox %s: its runtime handler %q is not configured any more", s.ID, s.Handler), "add it to the runtime's configuration again")
	}
	if _, err := os.Stat(with.Path); err != nil {
		return wire.Start{}, fault.Hint(fault.New(fault.Invalid, "runtime handler %s: %w", with.Name, err), "install it, or correct its path in the runtime's configuration")
	}
	return l.hands.StartForeign(c, made, l.images.Base(), with)
}

// execStart is what the monitor takes for a command in a container; remove is to be called when it runs or has failed.
func (l *loop) execStart(s *state.Sandbox, id string, c *state.Container, made plan.Made, args []string, terminal bool) (start wire.Start, remove func(), err error) {
	if s.Handler != "" {
		return l.hands.ExecForeign(id, c, made, args, terminal)
	}
	start, err = l.hands.Exec(id, c, made, args, terminal)
	return start, func() {}, err
}

// signal sends a container its stop signal.
func (l *loop) signal(ctx context.Context, c *state.Container) error {
	err := l.hands.SignalForeign(ctx, c.ID, strconv.Itoa(c.StopSignal))
	if fault.Is(err, fault.NotFound) { // it is a container of the native handler
		return l.keeper.Signal(ctx, c.ID, c.StopSignal, false)
	}
	return err
}
