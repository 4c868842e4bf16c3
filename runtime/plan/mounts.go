package plan

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/runtime/state"
)

// mounts lists the standard filesystems, then what the request asks for, parents before children. A request that
// covers a standard mount replaces it.
func mounts(in Input, users *IDMap) []specs.Mount {
	sc := in.Config.GetLinux().GetSecurityContext()
	privileged := sc.GetPrivileged()
	out := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
	}
	if in.Files.Shm != "" {
		out = append(out, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: in.Files.Shm, Options: []string{"rbind", "rprivate", "nosuid", "nodev", "noexec"}})
	}
	if !slices.Contains(in.Host.Absent, "mqueue") {
		out = append(out, specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}})
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev"}}
	if !privileged {
		sys.Options = append(sys.Options, "ro")
	}
	out = append(out, sys)
	out = append(out, cgroupMounts(in, privileged)...)
	for _, f := range []Bind{{in.Files.Hosts, "/etc/hosts"}, {in.Files.Hostname, "/etc/hostname"}, {in.Files.Resolv, "/etc/resolv.conf"}} {
		if f.Source != "" {
			m := specs.Mount{Destination: f.Destination, Type: "bind", Source: f.Source, Options: []string{"rbind", "rprivate"}}
			if sc.GetReadonlyRootfs() {
				m.Options = append(m.Options, "ro")
			}
			out = append(out, m)
		}
	}
	wanted := requested(in.Config.GetMounts(), in.Volumes, users)
	out = slices.DeleteFunc(out, func(m specs.Mount) bool {
		return slices.ContainsFunc(wanted, func(w specs.Mount) bool { return w.Destination == m.Destination })
	})
	return append(out, wanted...)
}

// cgroupMounts shows the container its own groups: one hierarchy on v2, the groups bound one by one on v1.
func cgroupMounts(in Input, privileged bool) []specs.Mount {
	mode := "ro"
	if privileged {
		mode = "rw"
	}
	if in.Host.CgroupV2 {
		return []specs.Mount{{Destination: "/sys/fs/cgroup", Type: "cgroup2", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", mode}}}
	}
	if len(in.Host.Cgroups) == 0 {
		return nil
	}
	out := []specs.Mount{{Destination: "/sys/fs/cgroup", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "nodev", "mode=755", "size=64k"}}}
	for _, b := range in.Host.Cgroups {
		out = append(out, specs.Mount{Destination: b.Destination, Type: "bind", Source: b.Source, Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", mode}})
	}
	return out
}

// requested translates the request's mounts; the order is by depth, so that a mount never hides a later one.
func requested(list []*cri.Mount, volumes []state.Volume, users *IDMap) []specs.Mount {
	out := make([]specs.Mount, 0, len(list))
	for _, v := range volumes {
		out = append(out, imageVolume(v, users))
	}
	for _, m := range list {
		if m.GetImage().GetImage() != "" {
			continue
		}
		o := []string{"rbind"}
		switch m.GetPropagation() {
		case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			o = append(o, "rshared")
		case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
			o = append(o, "rslave")
		default:
			o = append(o, "rprivate")
		}
		switch {
		case m.GetRecursiveReadOnly():
			o = append(o, "rro")
		case m.GetReadonly():
			o = append(o, "ro")
		}
		mount := specs.Mount{Destination: path.Clean(m.GetContainerPath()), Type: "bind", Source: m.GetHostPath(), Options: o}
		if len(m.GetUidMappings()) > 0 { // sameUsers has seen that they are the pod's
			mount.UIDMappings, mount.GIDMappings = users.uids(), users.gids()
		}
		out = append(out, mount)
	}
	slices.SortStableFunc(out, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return out
}

// imageVolume mounts image layers read-only. The kernel makes an overlay of two layers or more; one is bound as it is.
func imageVolume(v state.Volume, users *IDMap) specs.Mount {
	m := specs.Mount{Destination: v.Destination, Type: "overlay", Source: "overlay", Options: []string{"ro"}, UIDMappings: users.uids(), GIDMappings: users.gids()}
	if len(v.Lower) == 1 {
		m.Type, m.Source, m.Options = "bind", v.Lower[0], []string{"bind", "rprivate", "ro"}
		return m
	}
	for _, dir := range v.Lower {
		m.Options = append(m.Options, LowerDir+dir)
	}
	return m
}

// LowerDir starts a mount option that names one layer. Source: kernel overlayfs.rst, lowerdir+.
const LowerDir = "lowerdir+="
