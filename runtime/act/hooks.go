package act

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	"worknode/monitor/hook"
	"worknode/monitor/wire"
)

// A container has a bundle on the disk only if hooks are to read it, and as long as poststop hooks may have to run: its
// folder is also the note that they are due.

// hooks translates a spec's hooks, and writes the bundle that they expect to find.
func (h *Hands) hooks(id string, spec *specs.Spec) (*wire.Hooks, error) {
	if !anyHook(spec.Hooks) {
		return nil, nil
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	dir := h.Bundle(id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fault.New(fault.Exhausted, "bundle for the hooks: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644); err != nil {
		return nil, fault.New(fault.Exhausted, "bundle for the hooks: %w", err)
	}
	return Hooks(id, dir, spec), nil
}

// Hooks translates all hooks of a spec but the poststop ones. bundle is the folder of config.json.
func Hooks(id, bundle string, spec *specs.Spec) *wire.Hooks {
	if !anyHook(spec.Hooks) {
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

// EndBundle runs a container's poststop hooks if they are still due, and removes its bundle. Repeat: safe.
// Crash: before the end, and the hooks run again.
func (h *Hands) EndBundle(id string) error {
	dir := h.Bundle(id)
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var spec specs.Spec
	if err == nil {
		err = json.Unmarshal(text, &spec)
	}
	if err == nil {
		err = Poststop(id, dir, &spec)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// Bundle is the folder of a container's config.json, if it has hooks.
func (h *Hands) Bundle(id string) string { return filepath.Join(h.bundles(), id) }

func (h *Hands) bundles() string { return filepath.Join(h.live(), "bundles") }

func anyHook(h *specs.Hooks) bool {
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
