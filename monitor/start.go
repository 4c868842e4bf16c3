package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/pidfd"
	"worknode/monitor/inside"
	"worknode/monitor/wire"
)

// initLimit bounds the way from clone to execve; a hanging network mount must not keep a start for ever.
const initLimit = 2 * time.Minute

// launch is one start on its way.
type launch struct {
	m     *Monitor
	req   *wire.Start
	enter *os.File    // pidfd of the container that an exec enters
	child [3]*os.File // the child's stdio, closed after clone
	proc  *process
	ptyFd *os.File // an exec's terminal, for the runtime
	user  bool     // there is a user namespace to enter
	warns []string
}

func (m *Monitor) handleStart(to *peer, req *wire.Request, fds []int) {
	l := &launch{m: m, req: req.Start}
	reply := wire.Reply{Seq: req.Seq}
	if err := l.run(fds); err != nil {
		reply.Error = errorOf(err)
		to.send(frame{reply: reply})
		return
	}
	p := l.proc
	p.mu.Lock()
	info := p.info
	var files []*os.File
	if info.Join == "" {
		files, info.Files = p.files()
	} else if l.ptyFd != nil {
		files, info.Files = []*os.File{l.ptyFd}, []string{"pty"}
	}
	p.mu.Unlock()
	info.Warnings = l.warns
	reply.Started = &info
	to.send(frame{reply: reply, files: files, after: func() {
		if l.ptyFd != nil {
			l.ptyFd.Close()
		}
	}})
}

// run owns fds. On failure nothing is left but a zombie that the reaper takes.
func (l *launch) run(fds []int) (err error) {
	id := l.req.ID
	if err := checkID(id); err != nil {
		wire.CloseAll(fds)
		return err
	}
	l.m.mu.Lock()
	if l.m.procs[id] != nil {
		l.m.mu.Unlock()
		wire.CloseAll(fds)
		return fault.New(fault.Exists, "process %s: the monitor keeps one of that id", id)
	}
	l.m.procs[id] = &process{died: true} // reserved: m is nil
	l.m.starting++
	l.m.mu.Unlock()

	l.proc = &process{m: l.m, info: wire.Process{
		ID: id, LogPath: l.req.LogPath, OOMFile: l.req.OOMFile, Terminal: l.req.Terminal, Stdin: l.req.Stdin,
		StdinOnce: l.req.StdinOnce, Join: l.req.Join, Cgroup: l.req.Init.Cgroup,
	}}
	err = l.prepare(fds)
	if err == nil {
		if l.req.Foreign != nil {
			err = l.borrow()
		} else {
			err = l.clone()
		}
	}
	for _, f := range append(l.child[:], l.enter) {
		if f != nil {
			f.Close()
		}
	}
	if err == nil {
		l.proc.startCopying()
		if err = l.poststart(); err == nil {
			l.m.register(l.proc)
			return nil
		}
		_ = pidfd.Signal(l.proc.pidfd, unix.SIGKILL)
	}
	l.m.mu.Lock()
	delete(l.m.procs, id)
	l.m.started()
	l.m.mu.Unlock()
	if l.proc.drained == nil {
		l.proc.release()
	} else { // a process beside the killed one may hold the output open until the caller has killed that, too
		l.m.tasks.Go("release "+id, func(context.Context) { l.proc.release() })
	}
	if l.ptyFd != nil {
		l.ptyFd.Close()
	}
	return err
}

// prepare makes everything that exists before the process does.
func (l *launch) prepare(fds []int) error {
	if l.req.Join != "" {
		return l.prepareExec(fds)
	}
	wire.CloseAll(fds)
	p := l.proc
	if l.req.LogPath != "" {
		f, err := openLog(l.req.LogPath)
		if err != nil {
			return err
		}
		p.log = &logfile{id: l.req.ID, path: l.req.LogPath, file: f}
	} else {
		p.log = &logfile{id: l.req.ID}
	}
	var err error
	l.child[0], err = os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil || l.req.Terminal {
		p.info.Stdin = p.info.Stdin && err == nil
		return err
	}
	if p.log.path != "" {
		if p.log.journal, err = newJournal(); err != nil {
			return err
		}
	}
	for i := range p.pipes {
		if p.pipes[i], l.child[1+i], err = pipe(streamNames[i], true); err != nil {
			return err
		}
	}
	if l.req.Stdin {
		l.child[0].Close()
		l.child[0], p.stdin, err = pipe("stdin", false)
	}
	return err
}

// pipe makes a pipe whose end on our side does not block. The end that a container writes to is open both ways: a
// writer that is a reader, too, never gets SIGPIPE, so containers and their output outlive the death of all keepers at
// once; the end of the last writer still is the end of the file. client.Regain finds such pipes again.
func pipe(name string, read bool) (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fault.New(fault.Exhausted, "pipe for %s: %w", name, err)
	}
	ensureSize(p[0])
	if read {
		both, err := unix.Open("/proc/self/fd/"+strconv.Itoa(p[1]), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			unix.Close(p[0])
			unix.Close(p[1])
			return nil, nil, fault.New(fault.Exhausted, "pipe for %s: %w", name, err)
		}
		unix.Close(p[1])
		p[1] = both
	}
	ours := p[1]
	if read {
		ours = p[0]
	}
	_ = unix.SetNonblock(ours, true)
	return os.NewFile(uintptr(p[0]), name), os.NewFile(uintptr(p[1]), name), nil
}

func (l *launch) prepareExec(fds []int) error {
	want := 3
	if l.req.Terminal {
		want = 0
	}
	if len(fds) != want {
		wire.CloseAll(fds)
		return fault.New(fault.Invalid, "exec %s brought %d descriptors, need %d", l.req.ID, len(fds), want)
	}
	var err error
	if l.req.Terminal {
		l.child[0], err = os.OpenFile("/dev/null", os.O_RDWR, 0)
	}
	for i, fd := range fds {
		l.child[i] = os.NewFile(uintptr(fd), "stdio")
	}
	if err != nil {
		return err
	}
	target, err := l.m.find(l.req.Join)
	if err != nil {
		return err
	}
	target.mu.Lock()
	died, cgroup := target.died, target.info.Cgroup
	target.mu.Unlock()
	if died || target.pidfd == nil {
		return fault.New(fault.NotFound, "exec %s: container %s is not running", l.req.ID, l.req.Join)
	}
	// A duplicate, as the container may end and be forgotten meanwhile.
	if l.enter, err = duplicate(target.pidfd); err != nil {
		return fault.New(fault.NotFound, "exec %s: container %s: %w", l.req.ID, l.req.Join, err)
	}
	if len(l.req.Init.Cgroup) == 0 {
		l.proc.info.Cgroup = cgroup
		if l.req.Foreign == nil {
			l.req.Init.Cgroup = cgroup
		}
	}
	if l.req.Foreign != nil { // the other runtime knows the way
		l.enter.Close()
		l.enter = nil
		return nil
	}
	l.user = !sameUser(target.info.Pid)
	if l.req.Init.OOMScoreAdj == nil {
		l.req.Init.OOMScoreAdj = scoreOf(target.info.Pid)
	}
	return nil
}

// sameUser reports whether a process shares the monitor's user namespace.
func sameUser(pid int) bool {
	var ours, theirs unix.Stat_t
	err := unix.Stat("/proc/self/ns/user", &ours)
	if err == nil {
		err = unix.Stat(fmt.Sprintf("/proc/%d/ns/user", pid), &theirs)
	}
	return err != nil || ours.Ino == theirs.Ino
}

// scoreOf is what the OOM killer adds for a process; an exec gets its container's.
func scoreOf(pid int) *int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil {
		return nil
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return nil
	}
	return &n
}

// clone makes the process and follows its init to execve.
func (l *launch) clone() error {
	flags, err := inside.CloneFlags(l.req.Init.New)
	if err != nil {
		return err
	}
	l.user = l.user || l.req.Init.Join["user"] != ""
	if l.user && l.enter == nil {
		flags = unix.CLONE_NEWNS // the others are made inside the user namespace, to belong to it
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fault.New(fault.Exhausted, "socket for init: %w", err)
	}
	conn, err := wire.NewConn(pair[0])
	if err != nil {
		unix.Close(pair[1])
		return err
	}
	defer func() { _ = conn.Close() }()
	theirs := os.NewFile(uintptr(pair[1]), "init")
	pid, fd, err := l.fork(flags, theirs)
	theirs.Close()
	if err != nil {
		return err
	}
	l.proc.pidfd = os.NewFile(uintptr(fd), fmt.Sprintf("pidfd:%d", pid))
	l.proc.info.Pid = pid
	err = l.follow(conn)
	if pid = l.proc.info.Pid; err == nil {
		l.proc.info.Started = time.Now()
		l.proc.info.StartTime, _ = pidfd.StartTime(pid) // a zombie still has one
		return nil
	}
	_ = pidfd.Signal(l.proc.pidfd, unix.SIGKILL) // the reaper takes it as a stranger
	return err
}

// fork clones an init. A pid namespace that exists is joined by this thread for the moment of the clone: only children
// are in it. The thread is thrown away should the way back fail.
func (l *launch) fork(flags uintptr, theirs *os.File) (pid, fd int, err error) {
	fd = -1
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: flags, PidFD: &fd}
	if dir := l.intoCgroup(); dir >= 0 {
		defer unix.Close(dir)
		attr.UseCgroupFD, attr.CgroupFD = true, dir
	}
	files := make([]uintptr, 0, 5)
	for _, f := range l.child {
		if f == nil { // with a terminal there is one /dev/null for all, which init replaces
			f = l.child[0]
		}
		files = append(files, rawFd(f))
	}
	files = append(files, rawFd(theirs))
	if l.enter != nil {
		files = append(files, rawFd(l.enter))
	}
	join := l.pidNamespace()
	if join.err != nil {
		return 0, -1, join.err
	}
	fork := func() {
		pid, err = syscall.ForkExec(l.m.self, []string{"worknode-monitor", inside.Arg},
			&syscall.ProcAttr{Env: []string{"GOMAXPROCS=1", "GOGC=off"}, Files: files, Sys: attr})
	}
	if join.fd < 0 {
		fork()
	} else {
		done := make(chan struct{})
		l.m.tasks.Go("clone "+l.req.ID, func(context.Context) {
			defer close(done)
			runtime.LockOSThread()
			if err = unix.Setns(join.fd, unix.CLONE_NEWPID); err != nil {
				err = fmt.Errorf("join pid namespace: %w", err)
				runtime.UnlockOSThread()
				return
			}
			fork()
			if back := unix.Setns(l.m.pidNS, unix.CLONE_NEWPID); back != nil {
				slog.Error("a thread is lost to another pid namespace", "error", back)
				return // still locked: the runtime ends the thread with the goroutine
			}
			runtime.UnlockOSThread()
		})
		<-done
		if join.owned {
			unix.Close(join.fd)
		}
	}
	runtime.KeepAlive(l)
	if err != nil {
		return 0, -1, l.cloneError(err)
	}
	return pid, fd, nil
}

func (l *launch) cloneError(err error) error {
	kind := fault.Unknown
	switch {
	case errors.Is(err, unix.ENOMEM) && l.enter != nil:
		return fault.New(fault.NotFound, "exec %s: the container's first process has exited: %w", l.req.ID, err)
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOSPC):
		kind = fault.Exhausted
	case errors.Is(err, unix.EPERM):
		kind = fault.Denied
	}
	return fault.New(kind, "clone %s: %w", l.req.ID, err)
}

// rawFd is f's descriptor without File.Fd, which would make the shared description blocking. The caller keeps f open.
func rawFd(f *os.File) uintptr {
	var out uintptr
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { out = fd })
	}
	if err != nil {
		return ^uintptr(0)
	}
	return out
}

func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var dup int
	var derr error
	if err := raw.Control(func(fd uintptr) { dup, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	return os.NewFile(uintptr(dup), f.Name()), nil
}

type nsJoin struct {
	fd    int
	owned bool
	err   error
}

func (l *launch) pidNamespace() nsJoin {
	if l.enter != nil {
		return nsJoin{fd: int(rawFd(l.enter))}
	}
	path, ok := l.req.Init.Join["pid"]
	if !ok {
		return nsJoin{fd: -1}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nsJoin{fd: -1, err: fault.New(fault.NotFound, "join pid namespace: open %s: %w", path, err)}
	}
	return nsJoin{fd: fd, owned: true}
}

// intoCgroup opens the directory of a lone cgroup v2, which clone itself enters for free; v1 groups are for init.
func (l *launch) intoCgroup() int {
	groups := l.req.Init.Cgroup
	if len(groups) != 1 {
		return -1
	}
	dir, err := unix.Open(filepath.Dir(groups[0]), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	var st unix.Statfs_t
	if unix.Fstatfs(dir, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		unix.Close(dir)
		return -1
	}
	l.req.Init.Cgroup = nil
	return dir
}

// follow hands init its orders and waits until it has become the program: then its socket closes.
func (l *launch) follow(conn *wire.Conn) error {
	ring := l.req.ID
	if l.req.Join != "" {
		ring = l.req.Join
	}
	deadline := time.Now().Add(initLimit + l.req.Hooks.Limit())
	_ = conn.SetWriteDeadline(deadline)
	_ = conn.SetReadDeadline(deadline)
	order := inside.Request{Init: l.req.Init, Terminal: l.req.Terminal, Enter: l.enter != nil, Keyring: ring, User: l.user, Hooks: l.req.Hooks,
		Aside: l.req.Foreign != nil}
	unsent := conn.Send(order)
	if l.user && unsent == nil { // again, for the life inside the user namespace
		unsent = conn.Send(order)
	}
	ready := false
	for {
		var r inside.Report
		fds, err := conn.Recv(&r)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET):
			if ready {
				return nil
			}
			if unsent != nil && !errors.Is(unsent, unix.EPIPE) { // else it has ended, and said before why if it could
				return fmt.Errorf("init of %s: %w", l.req.ID, unsent)
			}
			return fault.Hint(fault.New(fault.Unknown, "init of %s died before it ran the program%s", l.req.ID, l.fate()), "is its memory or pids limit too small?")
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fault.New(fault.Temporary, "init of %s took longer than %v, probably in a mount that does not answer", l.req.ID, initLimit)
		case err != nil:
			return fmt.Errorf("init of %s: %w", l.req.ID, err)
		case r.Error != nil:
			wire.CloseAll(fds)
			return r.Error.Err()
		case r.Pty:
			if err := l.terminal(fds); err != nil {
				return err
			}
		case r.Self:
			if err := l.follows(fds); err != nil {
				return err
			}
			if err := conn.Send(inside.Seen{}); err != nil {
				return fmt.Errorf("init of %s: %w", l.req.ID, err)
			}
		case r.Made:
			if err := l.hooksCreate(); err != nil {
				return err
			}
			if err := conn.Send(inside.Seen{}); err != nil {
				return fmt.Errorf("init of %s: %w", l.req.ID, err)
			}
		case r.Warning != "":
			l.warns = append(l.warns, r.Warning)
		case r.Ready:
			ready = true
		}
	}
}

// fate tells how an init has ended, as far as the reaper saw it.
func (l *launch) fate() string {
	if done, err := pidfd.Exited(l.proc.pidfd); err != nil || !done {
		return ""
	}
	l.m.reap()
	l.m.mu.Lock()
	st, ok := l.m.early[l.proc.info.Pid]
	l.m.mu.Unlock()
	switch {
	case !ok:
		return ""
	case st.Signaled():
		return fmt.Sprintf(": signal %d (%s)", st.Signal(), st.Signal())
	}
	return fmt.Sprintf(": exit code %d", st.ExitStatus())
}

// follows takes the process that went on in init's place: it is our child too.
func (l *launch) follows(fds []int) error {
	if len(fds) != 1 {
		wire.CloseAll(fds)
		return fault.New(fault.Invalid, "init of %s sent %d descriptors for itself", l.req.ID, len(fds))
	}
	f := os.NewFile(uintptr(fds[0]), "pidfd")
	pid, err := pidfd.PidOf(f)
	if err != nil {
		f.Close()
		return fmt.Errorf("init of %s: %w", l.req.ID, err)
	}
	l.proc.pidfd.Close()
	l.proc.pidfd, l.proc.info.Pid = f, pid
	return nil
}

// terminal takes the master of the terminal that init has made.
func (l *launch) terminal(fds []int) error {
	if len(fds) != 1 {
		wire.CloseAll(fds)
		return fault.New(fault.Invalid, "init of %s sent %d descriptors for a terminal", l.req.ID, len(fds))
	}
	_ = unix.SetNonblock(fds[0], true)
	f := os.NewFile(uintptr(fds[0]), "pty")
	if l.req.Join != "" {
		l.ptyFd = f
		return nil
	}
	l.proc.pty = f
	var err error
	l.proc.slave, err = peerOf(f)
	return err
}

// peerOf opens the other end of a terminal by its master, whatever mount namespace it lives in.
func peerOf(master *os.File) (*os.File, error) {
	raw, err := master.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd uintptr
	var errno syscall.Errno
	err = raw.Control(func(m uintptr) {
		fd, _, errno = unix.Syscall(unix.SYS_IOCTL, m, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	})
	if err != nil {
		return nil, err
	}
	if errno != 0 {
		return nil, fmt.Errorf("open the terminal's other end: %w", errno)
	}
	return os.NewFile(fd, "tty"), nil
}
