package act

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// PipeOut makes a pipe for a process's output: ours to read without blocking a thread, its end blocking, as programs
// expect. (os.Pipe makes both ends non-blocking, and a program would lose output to EAGAIN.)
func PipeOut() (ours, theirs *os.File, err error) { return pipe(0) }

// PipeIn makes a pipe for a process's input: ours to write, its end blocking.
func PipeIn() (ours, theirs *os.File, err error) { return pipe(1) }

func pipe(ourEnd int) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	if err := unix.SetNonblock(fds[ourEnd], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[ourEnd]), "pipe"), os.NewFile(uintptr(fds[1-ourEnd]), "pipe"), nil
}
