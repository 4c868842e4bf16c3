package act

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	"worknode/monitor/wire"
	oci "worknode/oci/spec"
)

// A container has a bundle on the disk only if hooks are to read it, and as long as poststop hooks may have to run: its
// folder is also the note that they are due.

// hooks translates a spec's hooks, and writes the bundle that they expect to find.
func (h *Hands) hooks(id string, spec *specs.Spec) (*wire.Hooks, error) {
	if !oci.AnyHook(spec.Hooks) {
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
	return oci.Hooks(id, dir, spec), nil
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
		err = oci.Poststop(id, dir, &spec)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// Bundle is the folder of a container's config.json, if it has hooks.
func (h *Hands) Bundle(id string) string { return filepath.Join(h.bundles(), id) }

func (h *Hands) bundles() string { return filepath.Join(h.live(), "bundles") }
