package act

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/mount"
	"worknode/kernel/netns"
	"worknode/monitor/wire"
	"worknode/runtime/plan"
	"worknode/runtime/state"
)

// users is the mapping of a sandbox's user namespace, nil if it has the host's. The request was checked before.
func users(s *state.Sandbox) *netns.IDMap {
	m, err := plan.UserNamespace(s.Config.GetLinux().GetSecurityContext().GetNamespaceOptions())
	if err != nil || m == nil {
		return nil
	}
	return &netns.IDMap{UID: m.UID, GID: m.GID, Size: m.Size}
}

// ownLayer gives a writable layer to the container's root; what the container writes there has host ids of its range.
func (h *Hands) ownLayer(id string, m *wire.IDMap) error {
	for _, dir := range []string{"upper", "work"} {
		if err := os.Chown(filepath.Join(h.Layer(id), dir), int(m.UID), int(m.GID)); err != nil {
			return fmt.Errorf("writable layer: %w", err)
		}
	}
	return nil
}

// usersPossible tries what a pod with a user namespace needs: a namespace with a mapping, and files of dir shown with
// mapped owners. Overlays take such layers since kernel 5.19; the rest of what is needed is older.
// Errors: Unsupported, with the reason.
func usersPossible(dir string) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	var major, minor int
	release := unix.ByteSliceToString(name.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil || major < 5 || major == 5 && minor < 19 {
		return fault.New(fault.Unsupported, "kernel %s cannot map the owners of image layers, 5.19 can", release)
	}
	h, err := netns.Hold(netns.IDMap{UID: 65536, GID: 65536, Size: 65536})
	if err != nil {
		return err
	}
	defer h.Close()
	user, err := unix.Open(h.Path(netns.User), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	defer unix.Close(user)
	tree, err := mount.Clone(dir, false)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := mount.Idmap(tree, user); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}
