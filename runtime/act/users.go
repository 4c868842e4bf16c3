package act

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/state"
)

// maxAccounts bounds an image's passwd and group files, in bytes: an image must not make us read gigabytes.
const maxAccounts = 1 << 20

// User resolves who a container runs as: the request's user and group, else the image's, by the image's own files.
// base and layers locate the image (layers relative to base, topmost first).
// Errors: Invalid for a name that the image's files do not have, or files that are no such files.
// Source: CRI LinuxContainerSecurityContext.run_as_user, .supplemental_groups_policy; KEP-3619.
func User(base string, layers []string, imageUser string, sc *cri.LinuxContainerSecurityContext) (state.User, error) {
	v := newView(base, layers)
	name, group, _ := strings.Cut(imageUser, ":")
	if sc.GetRunAsUser() != nil || sc.GetRunAsUsername() != "" {
		name, group = sc.GetRunAsUsername(), ""
		if u := sc.GetRunAsUser(); u != nil {
			name = strconv.FormatInt(u.GetValue(), 10)
		}
		if g := sc.GetRunAsGroup(); g != nil {
			group = strconv.FormatInt(g.GetValue(), 10)
		}
	}
	passwd, err := v.accounts("/etc/passwd")
	if err != nil {
		return state.User{}, err
	}
	u, login, err := account(passwd, name)
	if err != nil {
		return state.User{}, err
	}
	groups, err := v.accounts("/etc/group")
	if err != nil {
		return state.User{}, err
	}
	if group != "" {
		if u.GID, err = groupID(groups, group); err != nil {
			return state.User{}, err
		}
	}
	// The primary group is among the supplementary ones, as other runtimes have it: status and id(1) then agree.
	u.Groups = []uint32{u.GID}
	if sc.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Merge && login != "" {
		member, err := user.ParseGroupFilter(bytes.NewReader(groups), func(g user.Group) bool { return slices.Contains(g.List, login) })
		if err != nil {
			return state.User{}, fault.New(fault.Invalid, "image's /etc/group: %w", err)
		}
		for _, g := range member {
			if !isAccount(g.Gid) {
				return state.User{}, fault.New(fault.Invalid, "image's /etc/group: group %q is %d, which cannot be", g.Name, g.Gid)
			}
			u.Groups = addGroup(u.Groups, uint32(g.Gid))
		}
	}
	for _, g := range sc.GetSupplementalGroups() {
		if g < 0 || g >= 1<<32-1 {
			return state.User{}, fault.New(fault.Invalid, "supplemental group %d is out of range", g)
		}
		u.Groups = addGroup(u.Groups, uint32(g))
	}
	return u, nil
}

func addGroup(list []uint32, g uint32) []uint32 {
	if slices.Contains(list, g) {
		return list
	}
	return append(list, g)
}

// accounts reads a passwd or group file; an image need not have one.
func (v view) accounts(name string) ([]byte, error) {
	data, err := v.read(name, maxAccounts)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// account finds a user by number or name; empty means root. login is the name in the file, empty if it has none.
func account(passwd []byte, name string) (u state.User, login string, err error) {
	if name == "" {
		name = "0"
	}
	number, err := strconv.ParseUint(name, 10, 32)
	numeric := err == nil && number < 1<<32-1
	list, err := user.ParsePasswdFilter(bytes.NewReader(passwd), func(p user.User) bool {
		return p.Name == name || numeric && p.Uid == int(number)
	})
	if err != nil {
		return u, "", fault.New(fault.Invalid, "image's /etc/passwd: %w", err)
	}
	if len(list) > 0 {
		p := list[0]
		if !isAccount(p.Uid) || !isAccount(p.Gid) {
			return u, "", fault.New(fault.Invalid, "image's /etc/passwd: user %q is %d:%d, which cannot be", name, p.Uid, p.Gid)
		}
		return state.User{UID: uint32(p.Uid), GID: uint32(p.Gid), Home: cleanHome(p.Home)}, p.Name, nil
	}
	if !numeric {
		return u, "", fault.Hint(fault.New(fault.Invalid, "user %q is not in the image's /etc/passwd", name), "name a user of the image, or a number")
	}
	return state.User{UID: uint32(number)}, "", nil
}

// isAccount says that the kernel takes a number as a user or group: -1 would mean that root stays root.
// Source: setresuid(2), "if one of the arguments equals -1, the corresponding value is not changed".
func isAccount(n int) bool { return n >= 0 && n < 1<<32-1 }

// cleanHome refuses what could smuggle a second environment variable in.
func cleanHome(home string) string {
	if strings.ContainsAny(home, "\x00\n") {
		return ""
	}
	return home
}

func groupID(groups []byte, name string) (uint32, error) {
	number, err := strconv.ParseUint(name, 10, 32)
	numeric := err == nil && number < 1<<32-1
	list, err := user.ParseGroupFilter(bytes.NewReader(groups), func(g user.Group) bool {
		return g.Name == name || numeric && g.Gid == int(number)
	})
	if err != nil {
		return 0, fault.New(fault.Invalid, "image's /etc/group: %w", err)
	}
	if len(list) > 0 {
		if !isAccount(list[0].Gid) {
			return 0, fault.New(fault.Invalid, "image's /etc/group: group %q is %d, which cannot be", name, list[0].Gid)
		}
		return uint32(list[0].Gid), nil
	}
	if !numeric {
		return 0, fault.New(fault.Invalid, "group %q is not in the image's /etc/group", name)
	}
	return uint32(number), nil
}
