package act

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	"worknode/monitor/wire"
	"worknode/runtime/handler"
	"worknode/runtime/plan"
	"worknode/runtime/seccomp"
	"worknode/runtime/state"
)

// A container of another handler has a folder in the live place: its bundle, what the handler reports, and a note of how
// it was called. The folder is also the note that the handler is to delete the container.

const (
	noteFile  = "handler.json"
	errorFile = "errors.json"
)

func (h *Hands) foreigns() string { return filepath.Join(h.live(), "foreign") }

// console is a socket for one terminal. Its name is no longer than the monitor's own, as an address has only 107 bytes.
func (h *Hands) console(id string) string {
	sum := sha256.Sum256([]byte(id))
	return filepath.Join(h.Run, "tty-"+hex.EncodeToString(sum[:4]))
}

func (h *Hands) foreign(id string) string { return filepath.Join(h.foreigns(), id) }

// StartForeign turns a plan into what the monitor takes for a container of another handler, and writes its bundle.
// Errors: Unsupported for what only the native handler can do.
func (h *Hands) StartForeign(c *state.Container, made plan.Made, base string, with handler.Config) (wire.Start, error) {
	start := wire.Start{
		ID: c.ID, Terminal: made.Spec.Process.Terminal, Stdin: c.Config.GetStdin(), StdinOnce: c.Config.GetStdinOnce(),
		LogPath: c.LogPath, OOMFile: h.Tree.OOMFile(c.Cgroup),
	}
	if with.Root == "" {
		with.Root = filepath.Join(h.live(), "handlers", with.Name)
	}
	dir := h.foreign(c.ID)
	spec, err := h.bundleSpec(c, made, filepath.Join(dir, "rootfs"))
	if err != nil {
		return start, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o711); err != nil {
		return start, fault.New(fault.Exhausted, "bundle: %w", err)
	}
	for name, v := range map[string]any{"config.json": spec, noteFile: with} {
		if err := writeJSON(filepath.Join(dir, name), v); err != nil {
			return start, err
		}
	}
	log, pid, console := filepath.Join(dir, errorFile), filepath.Join(dir, "pid"), h.console(c.ID)
	words := []string{"create", "--bundle", dir, "--pid-file", pid}
	if start.Terminal {
		words = append(words, "--console-socket", console)
	}
	start.Init = command(with.Command(log, append(words, c.ID)...))
	start.Init.New = []string{"mnt"}
	start.Init.Root = wire.Root{Base: base, Lower: c.Layers, Path: filepath.Join(dir, "rootfs"),
		Upper: filepath.Join(h.Layer(c.ID), "upper"), Work: filepath.Join(h.Layer(c.ID), "work")}
	start.Foreign = &wire.Foreign{Start: with.Command(log, "start", c.ID), PidFile: pid, Log: log, Console: console, Limit: handler.Limit}
	return start, nil
}

// bundleSpec is the plan as another runtime takes it: with the seccomp profile in it, and with hostPaths made.
func (h *Hands) bundleSpec(c *state.Container, made plan.Made, rootfs string) (*specs.Spec, error) {
	spec := *made.Spec
	linux := *spec.Linux
	spec.Linux, spec.Root = &linux, &specs.Root{Path: rootfs, Readonly: spec.Root.Readonly}
	if len(linux.UIDMappings) > 0 {
		return nil, fault.New(fault.Unsupported, "a pod with a user namespace of its own needs the native handler (leave runtimeClassName out)")
	}
	for _, m := range spec.Mounts {
		for _, o := range m.Options {
			if strings.HasPrefix(o, plan.LowerDir) {
				return nil, fault.New(fault.Unsupported, "mount %s: image volumes need the native handler (leave runtimeClassName out)", m.Destination)
			}
		}
		if hostPath(c, m) {
			if err := makeSource(m.Source); err != nil {
				return nil, fault.New(fault.Invalid, "mount %s: %w", m.Destination, err)
			}
		}
	}
	if linux.Seccomp == nil {
		var err error
		if linux.Seccomp, err = profile(&spec, made.Seccomp); err != nil {
			return nil, err
		}
	}
	return &spec, nil
}

// profile is the seccomp profile that was chosen for a container, nil for none.
func profile(spec *specs.Spec, choice plan.Seccomp) (*specs.LinuxSeccomp, error) {
	var bounding []string
	if c := spec.Process.Capabilities; c != nil {
		bounding = c.Bounding
	}
	switch {
	case choice.Default:
		return seccomp.Profile(nil, bounding)
	case choice.Path != "":
		text, err := os.ReadFile(choice.Path)
		if err != nil {
			return nil, fault.Hint(fault.New(fault.Invalid, "seccomp profile: %w", err), "put the profile on the node, or choose RuntimeDefault")
		}
		return seccomp.Profile(text, bounding)
	}
	return nil, nil
}

// command is an init that becomes a program of the host, with all the rights that we have.
func command(line []string) wire.Init {
	const all = ^uint64(0)
	return wire.Init{Args: line, Env: handler.Env(), Caps: wire.Caps{Bounding: all, Effective: all, Permitted: all}}
}

func writeJSON(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return fault.New(fault.Exhausted, "bundle: %w", err)
	}
	return nil
}

// ExecForeign is Exec for a container of another handler. remove takes away what it wrote for the command, when it has ended.
func (h *Hands) ExecForeign(id string, c *state.Container, made plan.Made, args []string, terminal bool) (start wire.Start, remove func(), err error) {
	remove = func() {}
	with, err := h.called(c.ID)
	if err != nil {
		return start, remove, err
	}
	p := *made.Spec.Process
	p.Args, p.Terminal = args, terminal
	if terminal && !hasEnv(p.Env, "TERM") {
		p.Env = append(p.Env[:len(p.Env):len(p.Env)], "TERM=xterm")
	}
	prefix := filepath.Join(h.foreign(c.ID), id)
	remove = func() {
		for _, suffix := range []string{".json", ".pid", ".log"} {
			os.Remove(prefix + suffix)
		}
	}
	if err := writeJSON(prefix+".json", p); err != nil {
		return start, remove, err
	}
	words := []string{"exec", "--detach", "--process", prefix + ".json", "--pid-file", prefix + ".pid"}
	f := &wire.Foreign{PidFile: prefix + ".pid", Log: prefix + ".log", Limit: handler.Limit}
	if terminal {
		f.Console = h.console(id)
		words = append(words, "--console-socket", f.Console)
	}
	return wire.Start{ID: id, Join: c.ID, Terminal: terminal, Init: command(with.Command(f.Log, append(words, c.ID)...)), Foreign: f}, remove, nil
}

// called reads how a container's handler was called. Errors: NotFound if it is no container of another handler.
func (h *Hands) called(id string) (handler.Config, error) {
	var with handler.Config
	text, err := os.ReadFile(filepath.Join(h.foreign(id), noteFile))
	if errors.Is(err, fs.ErrNotExist) {
		return with, fault.New(fault.NotFound, "container %s has no other handler", id)
	}
	if err == nil {
		err = json.Unmarshal(text, &with)
	}
	return with, err
}

// SignalForeign has a container's handler send a signal: its first process may be a sandbox that would not pass it on.
// Errors: NotFound if the container has no other handler.
func (h *Hands) SignalForeign(ctx context.Context, id, signal string) error {
	with, err := h.called(id)
	if err != nil {
		return err
	}
	_, err = with.Run(ctx, "kill", id, signal)
	return err
}

// EndForeign has a container's handler delete it, and removes its bundle. A handler that cannot is worth a warning: the
// cgroup with all processes goes by our own hand. Repeat: safe, also for containers of the native handler.
func (h *Hands) EndForeign(ctx context.Context, id string) error {
	with, err := h.called(id)
	if fault.Is(err, fault.NotFound) {
		return os.RemoveAll(h.foreign(id))
	}
	if err == nil {
		_, err = with.Run(ctx, "delete", "--force", id)
	}
	if err != nil {
		slog.Warn("the container's handler does not delete it", "id", id, "handler", with.Name, "error", err)
	}
	return os.RemoveAll(h.foreign(id))
}
