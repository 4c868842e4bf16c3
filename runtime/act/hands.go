// Package act is the hands of the runtime: it makes and removes what plans ask for, reads the world at start (look.go),
// and speaks with the monitor (keeper.go). It decides nothing, and everything in it may be repeated.
package act

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/cgroup"
	"worknode/kernel/mount"
	"worknode/runtime/plan"
	"worknode/runtime/seccomp"
)

// Hands holds what the actions need: where things lie, and what was found out about the node once.
type Hands struct {
	Root string // durable: writable layers
	Run  string // tmpfs: pins, shared files
	Tree *cgroup.Tree
	Host plan.Host

	usersErr error // why pods cannot have user namespaces here, or nil
	seccomp  seccomp.Cache
}

// Open looks at the node and prepares the folders.
func Open(root, run string) (*Hands, error) {
	tree, err := cgroup.Open()
	if err != nil {
		return nil, err
	}
	h := &Hands{Root: root, Run: run, Tree: tree}
	if err := os.MkdirAll(h.layers(), 0o711); err != nil {
		return nil, fault.Hint(fault.New(fault.Denied, "runtime folder: %w", err), "root and run folders must be writable")
	}
	if err := h.livePlace(); err != nil {
		return nil, fault.New(fault.Denied, "runtime folder: %w", err)
	}
	h.Host = plan.Host{CgroupV2: tree.V2(), Caps: ownCaps()}
	h.usersErr = usersPossible(h.layers())
	h.Host.UserNS = h.usersErr == nil
	if !hasFilesystem("mqueue") {
		h.Host.Absent = append(h.Host.Absent, "mqueue")
	}
	return h, nil
}

// livePlace makes run/live a private tmpfs: records are then written at the speed of memory wherever the run folder
// lies, and the mounts of a hundred pods below it (pins, shared memory) are never propagated into the mount namespaces
// that follow the host's.
func (h *Hands) livePlace() error {
	dir := h.live()
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	points, err := mount.Table()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(points, func(p mount.Point) bool { return p.Path == dir }) {
		if err := mount.Tmpfs(dir, "mode=711,size=256m", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil {
			return err
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := mount.Change(int(f.Fd()), 0, unix.MS_PRIVATE, false); err != nil {
		return err
	}
	return os.MkdirAll(h.pods(), 0o711)
}

// Leave removes the tmpfs if no sandbox is left in it, for an end without remains.
func (h *Hands) Leave() error {
	if left, err := os.ReadDir(h.pods()); err != nil || len(left) > 0 {
		return err
	}
	if err := mount.Detach(h.live()); err != nil {
		return err
	}
	return os.Remove(h.live())
}

// layers is where writable layers lie, one folder a container.
func (h *Hands) layers() string { return filepath.Join(h.Root, "containers") }

// Layer is the folder of a container's writable layer: upper and work below it.
func (h *Hands) Layer(id string) string { return filepath.Join(h.layers(), id) }

func (h *Hands) live() string { return filepath.Join(h.Run, "live") }

func (h *Hands) pods() string { return filepath.Join(h.live(), "pods") }

// Records is the folder of the state store.
func (h *Hands) Records() string { return filepath.Join(h.live(), "state") }

// MonitorState is the folder of the monitor's exit records.
func (h *Hands) MonitorState() string { return filepath.Join(h.live(), "monitor") }

// Shared is the folder of what a sandbox's containers share: files, shared memory, pinned namespaces.
func (h *Hands) Shared(id string) string { return filepath.Join(h.pods(), id) }

// Pins is the folder of a sandbox's pinned namespaces.
func (h *Hands) Pins(id string) string { return filepath.Join(h.Shared(id), "ns") }

// ownCaps reads the capabilities this process may hand on. Source: proc(5), /proc/PID/status CapBnd and CapPrm.
func ownCaps() uint64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	mask := ^uint64(0)
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		if key == "CapBnd" || key == "CapPrm" {
			n, _ := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			mask &= n
		}
	}
	return mask
}

// hasFilesystem reports whether the kernel knows a filesystem without a module being loaded.
func hasFilesystem(name string) bool {
	text, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return true
		}
	}
	return false
}
