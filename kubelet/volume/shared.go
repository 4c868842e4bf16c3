package volume

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"worknode/fault"
	"worknode/kernel/mount"
)

// shared is the tmpfs that holds what comes from the API, one directory a pod.
type shared struct {
	dir, root string

	mu    sync.Mutex // held while the tmpfs comes or goes, or a pod's directory does
	ready bool       // the tmpfs is known to be there
}

// add makes a pod's directory, and the tmpfs under it if this is the first.
func (s *shared) add(uid types.UID) (string, error) {
	dir := filepath.Join(s.dir, string(uid))
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ready {
		if err := s.mount(); err != nil {
			return "", err
		}
		s.ready = true
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", diskFault(err)
	}
	return dir, nil
}

// mount is called with mu held.
func (s *shared) mount() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return diskFault(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err == nil && fs.Type == unix.TMPFS_MAGIC {
		return nil // ours from before a restart, or the whole root is on tmpfs
	}
	err := mount.Tmpfs(s.dir, "mode=0700", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC)
	return fault.Hint(err, "files of Secrets must not touch a disk; the kubelet needs CAP_SYS_ADMIN for this")
}

// remove deletes a pod's directory, and the tmpfs with the last one, so that a node without pods has no mount of ours.
func (s *shared) remove(uid types.UID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.RemoveAll(filepath.Join(s.dir, string(uid))); err != nil {
		return diskFault(err)
	}
	left, err := os.ReadDir(s.dir)
	if err != nil || len(left) > 0 {
		return nil
	}
	if isMountPoint(s.dir) {
		if err := mount.Detach(s.dir); err != nil {
			return err
		}
	}
	s.ready = false
	os.Remove(s.dir)
	return nil
}

// isMountPoint tells whether another file system begins at dir. Bind mounts of the same one are not noticed.
func isMountPoint(dir string) bool {
	here, err := os.Lstat(dir)
	if err != nil {
		return false
	}
	above, err := os.Lstat(filepath.Dir(dir))
	if err != nil {
		return false
	}
	return here.Sys().(*syscall.Stat_t).Dev != above.Sys().(*syscall.Stat_t).Dev
}

// diskFault gives errors of the node's own disk a kind: all may pass once somebody makes room.
func diskFault(err error) error {
	if err == nil {
		return nil
	}
	if os.IsPermission(err) {
		return fault.As(fault.Denied, err)
	}
	return fault.As(fault.Temporary, err)
}
