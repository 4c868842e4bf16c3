package plan

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
)

// IDMap is a pod's user namespace: its ids from 0 to Size-1 are the host's from UID and GID on.
type IDMap struct{ UID, GID, Size uint32 }

// UserNamespace reads what a request says of its user namespace; nil means the host's.
// Errors: Invalid for what CRI does not allow. Source: CRI UserNamespace; KEP-127.
func UserNamespace(opts *cri.NamespaceOption) (*IDMap, error) {
	u := opts.GetUsernsOptions()
	switch {
	case u == nil:
		return nil, nil
	case u.GetMode() == cri.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			return nil, fault.New(fault.Invalid, "user namespace mode NODE takes no mapping")
		}
		return nil, nil
	case u.GetMode() != cri.NamespaceMode_POD:
		return nil, fault.New(fault.Invalid, "user namespace mode %s is not possible", u.GetMode())
	case opts.GetNetwork() == cri.NamespaceMode_NODE, opts.GetIpc() == cri.NamespaceMode_NODE, opts.GetPid() == cri.NamespaceMode_NODE:
		return nil, fault.Hint(fault.New(fault.Unsupported, "a user namespace cannot go with the host's network, ipc or pid namespace"),
			"set hostUsers: true, or leave hostNetwork, hostIPC and hostPID out")
	}
	uid, err := mapping("uids", u.GetUids())
	if err != nil {
		return nil, err
	}
	gid, err := mapping("gids", u.GetGids())
	if err != nil {
		return nil, err
	}
	if uid.GetLength() != gid.GetLength() {
		return nil, fault.New(fault.Invalid, "user namespace maps %d uids but %d gids", uid.GetLength(), gid.GetLength())
	}
	return &IDMap{UID: uid.GetHostId(), GID: gid.GetHostId(), Size: uid.GetLength()}, nil
}

// mapping is the one that CRI allows so far.
func mapping(what string, list []*cri.IDMapping) (*cri.IDMapping, error) {
	if len(list) != 1 {
		return nil, fault.New(fault.Invalid, "user namespace has %d mappings of %s, exactly one is possible", len(list), what)
	}
	m := list[0]
	switch {
	case m.GetContainerId() != 0:
		return nil, fault.New(fault.Invalid, "user namespace maps %s from %d on, it must be from 0 on", what, m.GetContainerId())
	case m.GetLength() == 0 || uint64(m.GetHostId())+uint64(m.GetLength()) > 1<<32-1:
		return nil, fault.New(fault.Invalid, "user namespace maps %d %s from the host's %d on, which is no range", m.GetLength(), what, m.GetHostId())
	}
	return m, nil
}

// sameUsers holds a container, and its mounts, to the user namespace of its sandbox.
func sameUsers(in Input) (*IDMap, error) {
	pod, err := UserNamespace(in.Sandbox.Config.GetLinux().GetSecurityContext().GetNamespaceOptions())
	if err != nil {
		return nil, err
	}
	own, err := UserNamespace(in.Config.GetLinux().GetSecurityContext().GetNamespaceOptions())
	if err != nil {
		return nil, err
	}
	name := "container " + in.Config.GetMetadata().GetName()
	if (own == nil) != (pod == nil) || own != nil && *own != *pod {
		return nil, fault.New(fault.Invalid, "%s: its user namespace is not the one of its sandbox", name)
	}
	for _, m := range in.Config.GetMounts() {
		if len(m.GetUidMappings())+len(m.GetGidMappings()) == 0 {
			continue
		}
		uid, err := mapping("uids", m.GetUidMappings())
		if err != nil {
			return nil, fault.New(fault.Invalid, "%s: mount %s: %w", name, m.GetContainerPath(), err)
		}
		gid, err := mapping("gids", m.GetGidMappings())
		if err != nil {
			return nil, fault.New(fault.Invalid, "%s: mount %s: %w", name, m.GetContainerPath(), err)
		}
		if asked := (IDMap{uid.GetHostId(), gid.GetHostId(), uid.GetLength()}); pod == nil || asked != *pod || gid.GetLength() != pod.Size {
			return nil, fault.New(fault.Unsupported, "%s: mount %s: its mapping is not the one of the pod's user namespace", name, m.GetContainerPath())
		}
	}
	return pod, nil
}

// uids and gids are the mapping as the OCI spec writes it.
func (m *IDMap) uids() []specs.LinuxIDMapping {
	if m == nil {
		return nil
	}
	return []specs.LinuxIDMapping{{HostID: m.UID, Size: m.Size}}
}

func (m *IDMap) gids() []specs.LinuxIDMapping {
	if m == nil {
		return nil
	}
	return []specs.LinuxIDMapping{{HostID: m.GID, Size: m.Size}}
}
