package act

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/kernel/mount"
	"worknode/kernel/seccomp"
	"worknode/monitor/wire"
	oci "worknode/oci/spec"
	"worknode/runtime/plan"
	"worknode/runtime/state"
	"worknode/step"
)

// PrepareLayer makes a container's writable layer. Repeat: safe.
func (h *Hands) PrepareLayer(id string) error {
	for _, dir := range []string{h.Layer(id), filepath.Join(h.Layer(id), "upper"), filepath.Join(h.Layer(id), "work")} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fault.Hint(fault.New(fault.Exhausted, "writable layer: %w", err), "make room on the file system of the root folder")
		}
		step.At("part of a layer made")
	}
	return nil
}

// RemoveLayer removes a container's writable layer with all that was written. Repeat: safe.
func (h *Hands) RemoveLayer(id string) error {
	if err := mount.Clear(h.Layer(id)); err != nil { // somebody's, perhaps with data that is not ours to remove
		return err
	}
	if err := os.RemoveAll(h.Layer(id)); err != nil {
		return fmt.Errorf("writable layer: %w", err)
	}
	step.At("layer removed")
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
		name := oci.NamespaceName(ns.Type)
		switch {
		case ns.Path != "":
			if init.Join == nil {
				init.Join = map[string]string{}
			}
			init.Join[name] = ns.Path
		case name != "mnt" && name != "":
			init.New = append(init.New, name)
		}
	}
	for _, d := range spec.Linux.Devices {
		init.Devices = append(init.Devices, wireDevice(d))
	}
	for _, m := range spec.Mounts {
		if hostPath(c, m) {
			if err := makeSource(m.Source); err != nil {
				return start, fault.New(fault.Invalid, "mount %s: %w", m.Destination, err)
			}
		}
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

// wireDevice fills in what a spec may leave out. Source: OCI config-linux.md, "Devices".
func wireDevice(d specs.LinuxDevice) wire.Device {
	out := wire.Device{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, Mode: 0o666}
	if out.Type == "u" {
		out.Type = "c"
	}
	if d.FileMode != nil {
		out.Mode = uint32(d.FileMode.Perm())
	}
	if d.UID != nil {
		out.UID = *d.UID
	}
	if d.GID != nil {
		out.GID = *d.GID
	}
	return out
}

// process is the part of a start that container and exec share: identity, rights, environment.
func (h *Hands) process(spec *specs.Spec, choice plan.Seccomp) (wire.Init, error) {
	p := spec.Process
	init, _, err := oci.Process(p) // a plan names no capability that is unknown
	if err != nil {
		return init, err
	}
	if init.Extra.Memory, err = oci.MemoryPolicy(spec.Linux.MemoryPolicy); err != nil {
		return init, err
	}
	if l := spec.Linux; len(l.UIDMappings) > 0 && len(l.GIDMappings) > 0 {
		init.IDMap = &wire.IDMap{UID: l.UIDMappings[0].HostID, GID: l.GIDMappings[0].HostID, Size: l.UIDMappings[0].Size}
	}
	var bounding []string
	if p.Capabilities != nil {
		bounding = p.Capabilities.Bounding
	}
	program, err := h.filter(spec.Linux.Seccomp, choice, bounding)
	init.Seccomp, init.SeccompFlags = program.Filter, program.Flags
	return init, err
}

// filter compiles the seccomp profile: the one that an edit brought, else the one that was chosen, else none.
func (h *Hands) filter(own *specs.LinuxSeccomp, choice plan.Seccomp, bounding []string) (seccomp.Program, error) {
	switch {
	case own != nil:
		text, err := json.Marshal(own)
		if err != nil {
			return seccomp.Program{}, fmt.Errorf("seccomp profile: %w", err)
		}
		return h.seccomp.Load(text, bounding)
	case choice.Default:
		return h.seccomp.Default(bounding)
	case choice.Path != "":
		text, err := os.ReadFile(choice.Path)
		if err != nil {
			return seccomp.Program{}, fault.Hint(fault.New(fault.Invalid, "seccomp profile: %w", err), "put the profile on the node, or choose RuntimeDefault")
		}
		program, err := h.seccomp.Load(text, bounding)
		if err != nil {
			err = fmt.Errorf("%s: %w", choice.Path, err)
		}
		return program, err
	}
	return seccomp.Program{}, nil
}

// hostPath reports whether a mount is one that the CRI request names.
func hostPath(c *state.Container, m specs.Mount) bool {
	return slices.ContainsFunc(c.Config.GetMounts(), func(r *cri.Mount) bool {
		return r.GetHostPath() != "" && r.GetHostPath() == m.Source && path.Clean(r.GetContainerPath()) == path.Clean(m.Destination)
	})
}

// makeSource makes a directory where a hostPath names nothing, as users of other runtimes rely on.
func makeSource(dir string) error {
	_, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(dir, 0o755)
	}
	return err
}

// wireMount splits the options. A mount without a type is one of a directory or file, as CDI writes them.
func wireMount(m specs.Mount, base string) (wire.Mount, error) {
	var lower, options []string
	for _, o := range m.Options {
		if dir, ok := strings.CutPrefix(o, plan.LowerDir); ok {
			lower = append(lower, strings.TrimPrefix(dir, base+"/"))
		} else {
			options = append(options, o)
		}
	}
	if m.Type == "" || m.Type == "none" {
		m.Type = "bind"
	}
	mapped := len(m.UIDMappings) > 0 // the pod's own mapping: a plan knows no other
	m.Options, m.UIDMappings, m.GIDMappings = options, nil, nil
	out, err := oci.Mount(m)
	out.IDMap, out.Lower = mapped || out.IDMap, lower
	out.Clear = 0 // a host's mount that is read-only, nosuid or so stays it, whatever a pod asks for
	if err != nil || out.Flags&unix.MS_BIND == 0 {
		return out, err
	}
	info, err := os.Stat(m.Source)
	if err != nil {
		return out, fault.New(fault.Invalid, "mount %s: %w", m.Destination, err)
	}
	out.File = !info.IsDir()
	return out, nil
}
