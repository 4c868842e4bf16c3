package spec

import (
	"errors"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/monitor/hook"
	"worknode/monitor/wire"
)

// Hooks translates all hooks of a spec but the poststop ones. bundle is the folder of config.json.
func Hooks(id, bundle string, spec *specs.Spec) *wire.Hooks {
	if !AnyHook(spec.Hooks) {
		return nil
	}
	s := spec.Hooks
	return &wire.Hooks{
		State:    hookState(id, bundle, spec),
		Prestart: hookList(s.Prestart), CreateRuntime: hookList(s.CreateRuntime), CreateContainer: hookList(s.CreateContainer), //nolint:staticcheck // deprecated, still honoured
		StartContainer: hookList(s.StartContainer), Poststart: hookList(s.Poststart),
	}
}

// Poststop runs the hooks that follow a container's end, each one whatever became of the one before.
// It blocks until they have ended or run out of time. Errors: those of the hooks, to be logged.
func Poststop(id, bundle string, spec *specs.Spec) error {
	if spec.Hooks == nil {
		return nil
	}
	state := hookState(id, bundle, spec)
	state.Status = string(specs.StateStopped)
	var errs []error
	for _, one := range hookList(spec.Hooks.Poststop) {
		errs = append(errs, hook.Runner{Dir: bundle}.Run("poststop", []wire.Hook{one}, state))
	}
	return errors.Join(errs...)
}

// AnyHook reports whether there is any.
func AnyHook(h *specs.Hooks) bool {
	return h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart)+len(h.Poststop) > 0 //nolint:staticcheck // deprecated, still honoured
}

func hookState(id, bundle string, spec *specs.Spec) wire.State {
	return wire.State{Version: specs.Version, ID: id, Bundle: bundle, Annotations: spec.Annotations}
}

func hookList(list []specs.Hook) []wire.Hook {
	var out []wire.Hook
	for _, h := range list {
		w := wire.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout != nil {
			w.Timeout = time.Duration(*h.Timeout) * time.Second
		}
		out = append(out, w)
	}
	return out
}
