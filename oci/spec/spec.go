// Package spec turns the configuration of the OCI runtime spec into what package monitor/inside takes: everything parsed,
// looked up and compiled. Both ways to a container go through it, CRI (runtime/act) and the OCI command line (oci).
// It makes nothing, and reads nothing but the names of files. What the executor cannot do it refuses, naming the field.
// Source: OCI runtime spec 1.3, config.md and config-linux.md.
package spec

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/seccomp"
	"worknode/monitor/wire"
)

// Made is a translated configuration, and what the caller has to make before init can run.
type Made struct {
	Init     wire.Init
	Warnings []string     // what is asked for and no kernel has
	NewUser  bool         // a user namespace with Init.IDMap is to be made and put into Init.Join["user"]
	Maps     map[int]Maps // by place in Init.Mounts: user namespaces to be made and put into IDMapFrom
}

// Maps are the mappings of one user namespace.
type Maps struct{ UIDs, GIDs []specs.LinuxIDMapping }

// Container translates the configuration of a bundle's folder.
// Errors: Invalid for what contradicts the spec or itself; Unsupported for what the executor cannot do.
func Container(s *specs.Spec, bundle string) (Made, error) {
	var m Made
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if s.Root == nil || s.Root.Path == "" {
		return m, fault.New(fault.Invalid, "root.path is missing")
	}
	if err := refuse(s); err != nil {
		return m, err
	}
	p := s.Process
	if p == nil { // it is needed by start alone
		p = &specs.Process{Cwd: "/"}
	}
	if !filepath.IsAbs(p.Cwd) {
		return m, fault.New(fault.Invalid, "process.cwd %q is not absolute", p.Cwd)
	}
	init, warnings, err := Process(p)
	if err != nil {
		return m, err
	}
	m.Init, m.Warnings = init, warnings
	if err := m.namespaces(s); err != nil {
		return m, err
	}
	if err := m.linux(s); err != nil {
		return m, err
	}
	if err := m.mounts(s, bundle); err != nil {
		return m, err
	}
	if l := s.Linux.Seccomp; l != nil {
		program, err := seccomp.Compile(l)
		if err != nil {
			return m, err
		}
		m.Init.Seccomp, m.Init.SeccompFlags = program.Filter, program.Flags
	}
	return m, nil
}

// refuse names what is asked for and cannot be had.
func refuse(s *specs.Spec) error {
	l := s.Linux
	switch {
	case s.VM != nil, s.Solaris != nil, s.Windows != nil, s.ZOS != nil, s.FreeBSD != nil:
		return fault.New(fault.Unsupported, "the configuration is for another platform than linux")
	case l.IntelRdt != nil:
		return fault.New(fault.Unsupported, "linux.intelRdt is not supported")
	case len(l.NetDevices) > 0:
		return fault.New(fault.Unsupported, "linux.netDevices is not supported")
	case l.MountLabel != "" && !selinux():
		return fault.New(fault.Unsupported, "linux.mountLabel %q: SELinux is not enabled on this machine", l.MountLabel)
	}
	return nil
}

func selinux() bool {
	var fs unix.Statfs_t
	return unix.Statfs("/sys/fs/selinux", &fs) == nil && fs.Type == unix.SELINUX_MAGIC
}

// NamespaceName is what init calls a namespace, empty for a type it does not know.
func NamespaceName(t specs.LinuxNamespaceType) string {
	switch t {
	case specs.MountNamespace:
		return "mnt"
	case specs.NetworkNamespace:
		return "net"
	case specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace, specs.UserNamespace, specs.TimeNamespace:
		return string(t)
	}
	return ""
}

func (m *Made) namespaces(s *specs.Spec) error {
	seen := map[string]bool{}
	for _, ns := range s.Linux.Namespaces {
		name := NamespaceName(ns.Type)
		switch {
		case name == "":
			return fault.New(fault.Invalid, "linux.namespaces: type %q is unknown", ns.Type)
		case seen[name]:
			return fault.New(fault.Invalid, "linux.namespaces: %s is there twice", ns.Type)
		case ns.Path != "" && !filepath.IsAbs(ns.Path):
			return fault.New(fault.Invalid, "linux.namespaces: path %q of %s is not absolute", ns.Path, ns.Type)
		case ns.Path != "" && name == "time":
			return fault.New(fault.Unsupported, "linux.namespaces: a time namespace can be made, not joined")
		}
		seen[name] = true
		switch {
		case ns.Path != "":
			if m.Init.Join == nil {
				m.Init.Join = map[string]string{}
			}
			m.Init.Join[name] = ns.Path
		case name == "user":
			m.NewUser = true
		default:
			m.Init.New = append(m.Init.New, name)
		}
	}
	if !seen["user"] && len(s.Linux.UIDMappings)+len(s.Linux.GIDMappings) > 0 {
		return fault.New(fault.Invalid, "linux.uidMappings and gidMappings need a user namespace")
	}
	if !seen["time"] && len(s.Linux.TimeOffsets) > 0 {
		return fault.New(fault.Invalid, "linux.timeOffsets need a time namespace of the container's own")
	}
	if s.Hostname != "" && !seen["uts"] || s.Domainname != "" && !seen["uts"] {
		return fault.New(fault.Invalid, "hostname and domainname need a uts namespace")
	}
	if seen["user"] && !slices.Contains(m.Init.New, "mnt") {
		return fault.New(fault.Unsupported, "a user namespace needs a new mount namespace beside it")
	}
	return m.users(s.Linux, seen["user"])
}

func (m *Made) users(l *specs.Linux, user bool) error {
	if !user {
		return nil
	}
	if m.NewUser && (len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0) {
		return fault.New(fault.Invalid, "a new user namespace needs linux.uidMappings and linux.gidMappings")
	}
	m.Init.IDMap = &wire.IDMap{UIDs: ranges(l.UIDMappings), GIDs: ranges(l.GIDMappings)}
	return nil
}

func ranges(list []specs.LinuxIDMapping) (out []wire.IDRange) {
	for _, r := range list {
		out = append(out, wire.IDRange{Inside: r.ContainerID, Host: r.HostID, Size: r.Size})
	}
	return out
}

// linux translates what is left of the section of that name.
func (m *Made) linux(s *specs.Spec) (err error) {
	l, init := s.Linux, &m.Init
	init.Hostname, init.Extra.Domainname = s.Hostname, s.Domainname
	init.Masked, init.Readonly, init.Sysctl = l.MaskedPaths, l.ReadonlyPaths, l.Sysctl
	if err := m.sysctls(l.Sysctl); err != nil {
		return err
	}
	if init.Extra.Personality, err = personality(l.Personality); err != nil {
		return err
	}
	if init.Extra.Memory, err = MemoryPolicy(l.MemoryPolicy); err != nil {
		return err
	}
	if init.Extra.TimeOffsets, err = timeOffsets(l.TimeOffsets); err != nil {
		return err
	}
	return m.devices(s)
}

// sysctls holds a configuration to what its namespaces own: anything else would change the machine.
// Source: config-linux.md, "Sysctl"; namespaces(7).
func (m *Made) sysctls(list map[string]string) error {
	has := func(name string) bool { return slices.Contains(m.Init.New, name) || m.Init.Join[name] != "" }
	for key := range list {
		name := strings.ReplaceAll(key, "/", ".")
		owner := ""
		switch {
		case strings.HasPrefix(name, "net."):
			owner = "net"
		case strings.HasPrefix(name, "kernel.msg"), strings.HasPrefix(name, "kernel.shm"), name == "kernel.sem", strings.HasPrefix(name, "fs.mqueue."):
			owner = "ipc"
		case name == "kernel.domainname", name == "kernel.hostname":
			owner = "uts"
		case strings.HasPrefix(name, "user."):
			if m.NewUser || m.Init.Join["user"] != "" {
				continue
			}
			owner = "user"
		}
		if owner == "" {
			return fault.New(fault.Invalid, "linux.sysctl %s belongs to no namespace: it would change the whole machine", key)
		}
		if !has(owner) {
			return fault.New(fault.Invalid, "linux.sysctl %s needs a %s namespace of the container's own", key, owner)
		}
	}
	return nil
}
