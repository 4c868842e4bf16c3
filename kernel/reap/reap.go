// Package reap starts child processes and collects the exit of every process that becomes a child of this one.
// As a child subreaper a process inherits orphans that it never started, and wait4(-1) would steal the exits that
// os/exec waits for: so a process that uses this package must start all its children here.
// Source: prctl(2) PR_SET_CHILD_SUBREAPER, wait4(2).
package reap

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is how a process ended. Unknown is set for an adopted process, whose parent was somebody else.
type Exit struct {
	Status  syscall.WaitStatus
	Unknown bool
}

func (e Exit) String() string {
	switch {
	case e.Unknown:
		return "ended"
	case e.Status.Signaled():
		return "killed by " + e.Status.Signal().String()
	default:
		return "exit code " + strconv.Itoa(e.Status.ExitStatus())
	}
}

// Reaper owns all waits of this process.
type Reaper struct {
	mu   sync.Mutex // held over fork and over wait4, so that no child is reaped before it is known
	mine map[int]chan Exit
}

// keepStrangers is how long the zombie of a process that we never started is kept at least. It may be a container whose
// monitor was killed: the next monitor reads its exit code from the zombie, if the kernel tells it nowhere else
// (PIDFD_GET_INFO came with 6.15).
const keepStrangers = 3 * time.Second

// New makes this process a child subreaper and begins to reap until ctx ends.
func New(ctx context.Context) (*Reaper, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become child subreaper: %w", err)
	}
	r := &Reaper{mine: map[int]chan Exit{}}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	go r.run(ctx, signals)
	return r, nil
}

func (r *Reaper) run(ctx context.Context, signals chan os.Signal) {
	defer signal.Stop(signals)
	var sweep <-chan time.Time
	var seen map[int]bool // zombies of strangers at the last sweep
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			r.collect()
			if sweep == nil {
				sweep = time.After(keepStrangers)
			}
		case <-sweep:
			sweep = nil
			if seen = r.sweep(seen); len(seen) > 0 {
				sweep = time.After(keepStrangers)
			}
		}
	}
}

// collect takes the exits of our own children.
func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for pid, done := range r.mine {
		if status, ended := wait(pid); ended {
			delete(r.mine, pid)
			done <- Exit{Status: status}
		}
	}
}

func wait(pid int) (status syscall.WaitStatus, ended bool) {
	for {
		got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		if err != syscall.EINTR {
			return status, got == pid
		}
	}
}

// sweep reaps the zombies that were there at the last sweep too, and returns those that are there now.
func (r *Reaper) sweep(before map[int]bool) map[int]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := map[int]bool{}
	for _, pid := range zombies(os.Getpid()) {
		if _, ours := r.mine[pid]; ours {
			continue
		}
		if before[pid] {
			wait(pid)
		} else {
			now[pid] = true
		}
	}
	return now
}

// zombies lists the ended children of a process. Source: proc(5), /proc/PID/stat fields 3 and 4.
func zombies(parent int) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	want := " Z " + strconv.Itoa(parent) + " "
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if end := strings.LastIndexByte(string(data), ')'); err == nil && end > 0 && strings.HasPrefix(string(data[end+1:]), want) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Start runs a program; the channel delivers its exit once. The caller keeps attr's files.
func (r *Reaper) Start(path string, argv []string, attr *os.ProcAttr) (pid int, exit <-chan Exit, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", path, err)
	}
	done := make(chan Exit, 1)
	r.mine[p.Pid] = done
	pid = p.Pid
	_ = p.Release() // only forgets p
	return pid, done, nil
}

// Adopt watches a process that is not a child of this one. It returns false if pid is not the process that began at
// start (see StartTime), so a reused pid is never taken for the old process.
func Adopt(pid int, start uint64) (<-chan Exit, bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, false
	}
	if now, err := StartTime(pid); err != nil || now != start {
		unix.Close(fd)
		return nil, false
	}
	done := make(chan Exit, 1)
	go func() {
		defer unix.Close(fd)
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if err != unix.EINTR {
				done <- Exit{Unknown: true}
				return
			}
		}
	}()
	return done, true
}

// Find looks for a process with exactly these arguments, argv[0] included. It finds what a killed starter had no time to
// write down.
func Find(argv []string) (pid int, found bool) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, false
	}
	want := strings.Join(argv, "\x00") + "\x00"
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if data, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && string(data) == want {
			return pid, true
		}
	}
	return 0, false
}

// StartTime returns when a process began, in clock ticks since boot: together with the pid it names the process for
// ever. Source: proc(5), /proc/PID/stat field 22.
func StartTime(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("start time of process %d: %w", pid, err)
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return 0, fmt.Errorf("start time of process %d: it has ended", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
