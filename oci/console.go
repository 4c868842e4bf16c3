package oci

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"worknode/monitor/birth"
)

// pass hands a terminal's master to the socket that the caller named. Source: runc, docs/terminals.md.
func (b *born) pass(socket string) error {
	if b.Pty == nil {
		return nil
	}
	defer b.Pty.Close()
	fd, err := birth.Dial(filepath.Split(socket))
	if err != nil {
		return fmt.Errorf("console socket %s: %w", socket, err)
	}
	defer unix.Close(fd)
	if err := birth.SendFile(fd, b.Pty, "/dev/ptmx"); err != nil {
		return fmt.Errorf("console socket %s: %w", socket, err)
	}
	return nil
}

// hold connects the caller's terminal with a process' own until the latter ends, and returns a function that restores it.
func (b *born) hold() (restore func()) {
	if b.Pty == nil {
		return func() {}
	}
	master := b.Pty
	old, err := term.MakeRaw(int(os.Stdin.Fd()))
	sizes := make(chan os.Signal, 1)
	signal.Notify(sizes, unix.SIGWINCH)
	resize := func() {
		if size, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ); err == nil {
			_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, size)
		}
	}
	resize()
	done := make(chan struct{})
	go func() {
		for range sizes {
			resize()
		}
	}()
	go func() { _, _ = io.Copy(master, os.Stdin) }() // ends with this process
	go func() {
		_, _ = io.Copy(os.Stdout, master) // ends with an error when the last process has closed its side
		close(done)
	}()
	return func() {
		<-done
		signal.Stop(sizes)
		if err == nil {
			_ = term.Restore(int(os.Stdin.Fd()), old)
		}
	}
}

// attend waits for a child's end, passing signals on, and returns its code as shells know it.
func (b *born) attend() int {
	signals := make(chan os.Signal, 32)
	signal.Notify(signals)
	ends := make(chan int, 1)
	go func() { ends <- b.wait() }()
	for {
		select {
		case code := <-ends:
			return code
		case s := <-signals:
			switch s {
			case unix.SIGCHLD, unix.SIGPIPE, unix.SIGURG, unix.SIGWINCH:
			default:
				_ = unix.Kill(b.Pid, s.(unix.Signal)) // not reaped yet: the number is still its own
			}
		}
	}
}

func (b *born) wait() int {
	var st unix.WaitStatus
	for {
		_, err := unix.Wait4(b.Pid, &st, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 255
		case st.Signaled():
			return 128 + int(st.Signal())
		default:
			return st.ExitStatus()
		}
	}
}
