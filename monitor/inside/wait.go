package inside

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// wait is the life of a container that is created and not started. A created container outlives who made it, and its
// starter is another process: it connects to the socket, which from then on is the one that reports go to. A fifo, as
// other runtimes have it, could not tell the starter why the program did not run.
// Source: OCI runtime spec, runtime.md, "Lifecycle", step 8.
func (s *setup) wait() error {
	if !s.req.Wait {
		return nil
	}
	if err := send([]byte(ready)); err != nil {
		return err
	}
	for {
		conn, _, err := unix.Accept4(TargetFd, unix.SOCK_CLOEXEC)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for the start: %w", err)
		}
		if err := unix.Dup3(conn, socket, unix.O_CLOEXEC); err != nil {
			return fmt.Errorf("wait for the start: %w", err)
		}
		unix.Close(conn)
		unix.Close(TargetFd) // a second starter is refused by the kernel
		return nil
	}
}

// keep moves the descriptors meant for the workload to where it expects them, and our own socket out of the way.
func (s *setup) keep() {
	if s.req.Keep == 0 {
		return
	}
	if fd, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD_CLOEXEC, KeepFd+s.req.Keep); err == nil {
		socket = fd
	}
	for i := range s.req.Keep { // each goes to a lower place than any that is still to move
		_ = unix.Dup3(KeepFd+i, 3+i, 0)
	}
}
