package act

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/wire"
	"worknode/runtime/plan"
	"worknode/runtime/state"
)

// PrepareLayer makes a container's writable layer. Repeat: safe.
func (h *Hands) PrepareLayer(id string) error {
	for _, dir := range []string{h.Layer(id), filepath.Join(h.Layer(id), "upper"), filepath.Join(h.Layer(id), "work")} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fault.Hint(fault.New(fault.Exhausted, "writable layer: %w", err), "make room on the file system of the root folder")
		}
	}
	return nil
}

// RemoveLayer removes a container's writable layer with all that was written. Repeat: safe.
func (h *Hands) RemoveLayer(id string) error {
	if err := os.RemoveAll(h.Layer(id)); err != nil {
		return fmt.Errorf("writable layer: %w", err)
	}
	return nil
}

// Start turns a plan into what the monitor takes: everything parsed, looked up and compiled.
// base is the folder the container's layers are relative to.
// Errors: Invalid for a seccomp profile or mount that cannot be used; Exhausted or Denied when a missing hostPath cannot be made.
func (h *Hands) Start(c *state.Container, made plan.Made, base string) (wire.Start, error) {
	spec := made.Spec
	start := wire.Start{
		ID: c.ID, Terminal: spec.Process.Terminal, Stdin: c.Config.GetStdin(), StdinOnce: c.Config.GetStdinOnce(),
		LogPath: c.LogPath, OOMFile: h.Tree.OOMFile(c.Cgroup),
	}
	init, err := h.process(spec, made.Seccomp)
	if err != nil {
		return start, err
	}
	init.Cgroup = h.Tree.ProcsFiles(c.Cgroup)
	init.Root = wire.Root{
		Base: base, Lower: c.Layers, Readonly: spec.Root.Readonly,
		Upper: filepath.Join(h.Layer(c.ID), "upper"), Work: filepath.Join(h.Layer(c.ID), "work"),
	}
	if init.IDMap != nil {
		init.Root.IDMap = true
		if err := h.ownLayer(c.ID, init.IDMap); err != nil {
			return start, err
		}
	}
	init.Masked, init.Readonly = spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths
	init.Sysctl = spec.Linux.Sysctl
	init.New = []string{"mnt"}
	for _, ns := range spec.Linux.Namespaces {
		name, ok := nsNames[ns.Type]
		switch {
		case !ok:
		case ns.Path != "":
			if init.Join == nil {
				init.Join = map[string]string{}
			}
			init.Join[name] = ns.Path
		case name != "mnt":
			init.New = append(init.New, name)
		}
	}
	for _, d := range spec.Linux.Devices {
		init.Devices = append(init.Devices, wire.Device{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor,
			Mode: uint32(d.FileMode.Perm()), UID: *d.UID, GID: *d.GID})
	}
	for _, m := range spec.Mounts {
		w, err := wireMount(m, base)
		if err != nil {
			return start, err
		}
		init.Mounts = append(init.Mounts, w)
	}
	start.Init = init
	spec.Root.Path = init.Root.Upper // where it will be mounted, for the hooks
	start.Hooks, err = h.hooks(c.ID, spec)
	return start, err
}

var nsNames = map[specs.LinuxNamespaceType]string{
	specs.MountNamespace: "mnt", specs.PIDNamespace: "pid", specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc",
	specs.UTSNamespace: "uts", specs.CgroupNamespace: "cgroup", specs.UserNamespace: "user",
}

// process is the part of a start that container and exec share: identity, rights, environment.
func (h *Hands) process(spec *specs.Spec, choice plan.Seccomp) (wire.Init, error) {
	p := spec.Process
	init := wire.Init{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd, UID: p.User.UID, GID: p.User.GID, Groups: p.User.AdditionalGids,
		Umask: p.User.Umask, NoNewPrivs: p.NoNewPrivileges, OOMScoreAdj: p.OOMScoreAdj,
	}
	if l := spec.Linux; len(l.UIDMappings) > 0 && len(l.GIDMappings) > 0 {
		init.IDMap = &wire.IDMap{UID: l.UIDMappings[0].HostID, GID: l.GIDMappings[0].HostID, Size: l.UIDMappings[0].Size}
	}
	if c := p.Capabilities; c != nil {
		init.Caps = wire.Caps{Bounding: plan.CapMask(c.Bounding), Effective: plan.CapMask(c.Effective), Permitted: plan.CapMask(c.Permitted),
			Inheritable: plan.CapMask(c.Inheritable), Ambient: plan.CapMask(c.Ambient)}
	}
	var bounding []string
	if p.Capabilities != nil {
		bounding = p.Capabilities.Bounding
	}
	switch {
	case choice.Default:
		program, err := h.seccomp.Default(bounding)
		if err != nil {
			return init, err
		}
		init.Seccomp, init.SeccompFlags = program.Filter, program.Flags
	case choice.Path != "":
		text, err := os.ReadFile(choice.Path)
		if err != nil {
			return init, fault.Hint(fault.New(fault.Invalid, "seccomp profile: %w", err), "put the profile on the node, or choose RuntimeDefault")
		}
		program, err := h.seccomp.Load(text, bounding)
		if err != nil {
			return init, fmt.Errorf("%s: %w", choice.Path, err)
		}
		init.Seccomp, init.SeccompFlags = program.Filter, program.Flags
	}
	return init, nil
}

// mountFlags are the option words that are MS_* bits. Source: mount(8), OCI config.md "Linux mount options".
var mountFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"strictatime": unix.MS_STRICTATIME, "relatime": unix.MS_RELATIME, "noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME,
	"bind": unix.MS_BIND, "rbind": unix.MS_BIND | unix.MS_REC, "sync": unix.MS_SYNCHRONOUS,
}

var mountPropagation = map[string]uintptr{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC, "slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC, "unbindable": unix.MS_UNBINDABLE,
}

// wireMount splits the options. A bind mount whose source is missing gets a directory, as hostPath users of other
// runtimes rely on.
func wireMount(m specs.Mount, base string) (wire.Mount, error) {
	out := wire.Mount{Source: m.Source, Destination: m.Destination, Type: m.Type, IDMap: len(m.UIDMappings) > 0}
	var data []string
	for _, o := range m.Options {
		if f, ok := mountFlags[o]; ok {
			out.Flags |= f
		} else if p, ok := mountPropagation[o]; ok {
			out.Propagation = append(out.Propagation, p)
		} else if dir, ok := strings.CutPrefix(o, plan.LowerDir); ok {
			out.Lower = append(out.Lower, strings.TrimPrefix(dir, base+"/"))
		} else if o == "rro" {
			out.RecReadonly = true
			out.Flags |= unix.MS_RDONLY
		} else if o != "rw" {
			data = append(data, o)
		}
	}
	out.Data = strings.Join(data, ",")
	if out.Flags&unix.MS_BIND == 0 {
		return out, nil
	}
	out.Type = "bind"
	info, err := os.Stat(m.Source)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(m.Source, 0o755); err == nil {
			info, err = os.Stat(m.Source)
		}
	}
	if err != nil {
		return out, fault.New(fault.Invalid, "mount %s: %w", m.Destination, err)
	}
	out.File = !info.IsDir()
	return out, nil
}
