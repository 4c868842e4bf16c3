package inside

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"worknode/kernel/mount"
)

// aside prepares the life of a command of the host: another OCI runtime, which makes the container itself. All it gets is
// the root filesystem, mounted where it looks for it and in this mount namespace alone, so that the host's table stays
// clean and nothing has to be unmounted later.
func (s *setup) aside() error {
	unix.Umask(0o022)
	if r := s.Root; len(r.Lower) > 0 {
		if err := unix.Chdir(r.Base); err != nil {
			return &os.PathError{Op: "chdir", Path: r.Base, Err: err}
		}
		if err := mount.Overlay(r.Path, r.Lower, r.Upper, r.Work, true); err != nil {
			return err
		}
		if err := unix.Chdir("/"); err != nil {
			return err
		}
	}
	if err := unix.CloseRange(SocketFd+1, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	return nil
}
