// Package pidfd names processes by descriptor, so that a reused pid is never mistaken for the process that had it.
// It is not for waiting on children: the monitor's reaper owns wait.
// Source: pidfd_open(2), linux/pidfd.h.
package pidfd

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Open returns a descriptor of the process pid, close-on-exec and non-blocking, so that it can be polled.
// It becomes readable when the process has exited. The caller closes it.
// Errors: NotFound if no such process exists. Needs: kernel 5.10 (PIDFD_NONBLOCK).
func Open(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH {
		return nil, fault.New(fault.NotFound, "process %d: %w", pid, err)
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd_open process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid)), nil
}

// Signal sends sig to the process that f names.
// Errors: NotFound if it has been reaped. A zombie takes the signal without effect.
func Signal(f *os.File, sig unix.Signal) error {
	var err error
	cerr := control(f, func(fd int) { err = unix.PidfdSendSignal(fd, sig, nil, 0) })
	if cerr != nil {
		return cerr
	}
	if err == unix.ESRCH {
		return fault.New(fault.NotFound, "signal %d to %s: %w", sig, f.Name(), err)
	}
	if err != nil {
		return fmt.Errorf("signal %d to %s: %w", sig, f.Name(), err)
	}
	return nil
}

// Exited reports whether the process has ended; it does not block.
func Exited(f *os.File) (bool, error) {
	var n int
	var err error
	cerr := control(f, func(fd int) {
		for {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if n, err = unix.Poll(p, 0); err != unix.EINTR {
				return
			}
		}
	})
	if cerr != nil {
		return false, cerr
	}
	return n > 0, err
}

// Wait blocks until the process has ended. It costs a parked goroutine, no thread, when f is pollable.
func Wait(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, e := unix.Poll(p, 0)
		if e != nil && e != unix.EINTR {
			perr = e
			return true
		}
		return n > 0
	})
	if err == nil {
		err = perr
	}
	return err
}

// ExitStatus returns the wait status (exit code in bits 8-15, signal in bits 0-6) of a process that has ended, as
// any holder of a descriptor can learn it, parent or not. pid is where to look while the process is still a zombie.
// Errors: NotFound if nobody can tell any more (kernel before 6.15 and already reaped); Busy if it still runs.
// Source: linux/pidfd.h PIDFD_INFO_EXIT (kernel 6.15): answers only after the process was reaped; proc(5) stat
// field 52 before that.
func ExitStatus(f *os.File, pid int) (unix.WaitStatus, error) {
	done, err := Exited(f)
	if err != nil {
		return 0, err
	}
	if !done {
		return 0, fault.New(fault.Busy, "process %d is still running", pid)
	}
	// Zombie first, then the reaped record, then once more: it may be reaped between the two looks.
	for range 2 {
		if st, err := readStat(pid); err == nil && st.State == 'Z' && same(f, pid) {
			return unix.WaitStatus(st.ExitCode), nil
		}
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		var ierr error
		if err := control(f, func(fd int) { ierr = unix.IoctlPidfdInfo(fd, &info) }); err != nil {
			return 0, err
		}
		if ierr == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			return unix.WaitStatus(info.Exit_code), nil
		}
	}
	return 0, fault.New(fault.NotFound, "exit status of process %d: it was reaped and this kernel keeps no record", pid)
}

// same reports whether the zombie seen as pid is still the one f names: signal 0 through f fails once it was reaped,
// and a pid is not reused before that.
func same(f *os.File, _ int) bool { return Signal(f, 0) == nil }

// Stat is the part of /proc/PID/stat that we use. Source: proc(5).
type Stat struct {
	State      byte
	PPid       int
	Session    int
	StartTime  uint64 // clock ticks since boot, field 22
	ExitCode   int    // wait status, field 52; zero unless a zombie that the reader may trace
	Comm       string
	ProcessGrp int
}

// ReadStat reads the record of process pid. Errors: NotFound if it does not exist.
func ReadStat(pid int) (Stat, error) { return readStat(pid) }

func readStat(pid int) (Stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Stat{}, fault.New(fault.NotFound, "process %d: %w", pid, err)
	}
	open, shut := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || shut < open || shut+2 > len(b) {
		return Stat{}, fmt.Errorf("process %d: cannot read its stat line %q", pid, b)
	}
	f := bytes.Fields(b[shut+2:])
	if len(f) < 50 {
		return Stat{}, fmt.Errorf("process %d: its stat line has %d fields, need 52", pid, len(f)+2)
	}
	s := Stat{State: f[0][0], Comm: string(b[open+1 : shut])}
	s.PPid, _ = strconv.Atoi(string(f[1]))
	s.ProcessGrp, _ = strconv.Atoi(string(f[2]))
	s.Session, _ = strconv.Atoi(string(f[3]))
	s.StartTime, _ = strconv.ParseUint(string(f[19]), 10, 64)
	s.ExitCode, _ = strconv.Atoi(string(f[49]))
	return s, nil
}

// StartTime returns when pid started, in clock ticks since boot: with the pid it names a process until reboot.
// Errors: NotFound if it does not exist.
func StartTime(pid int) (uint64, error) {
	s, err := readStat(pid)
	return s.StartTime, err
}

func control(f *os.File, fn func(fd int)) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { fn(int(fd)) })
}
