// Package monitor is the keeper of a node's containers: their parent, the other end of their pipes and terminals, the
// writer of their logs and the witness of their ends. It clones them as the runtime says and knows no policy.
//
// It must never take a container along. So it is small, imports kernel/ alone, and what it must not lose lies outside
// of it: output in the pipes until it is in the log (journal.go), exits in small files (record.go), and a duplicate of
// every descriptor with the runtime, which rebuilds a killed monitor by Adopt.
//
// Read monitor.go (connections), start.go (clone), copy.go and journal.go (logs), reap.go (ends), adopt.go.
package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/wire"
	"worknode/task"
	"worknode/version"
)

// Options say where a monitor lives.
type Options struct {
	Socket string // unix socket to serve
	State  string // directory for exit records, made if absent; a tmpfs, as a reboot voids it

	Handover Handover // what the build before this one left us with the process, if any
}

// Monitor is the state of one monitor. mu guards the tables; each process has a lock of its own, taken after mu.
type Monitor struct {
	dir   string
	self  string // path of this binary that init is cloned from
	pidNS int    // descriptor of the monitor's own pid namespace
	tasks *task.Group

	reaping sync.Mutex // taken before mu

	mu       sync.Mutex
	procs    map[string]*process
	pids     map[int]*process
	starting int                     // starts between clone and registration
	early    map[int]unix.WaitStatus // ends seen meanwhile, by pid
	conns    map[*peer]struct{}

	trim *time.Timer // gives memory back to the kernel once a burst of starts is over

	// What must not be under way while another build takes over: requests, and steps of anything else that changes what
	// is handed on. See upgrade.go.
	calls, steps gate
	upgrading    sync.Mutex
	opts         Options
	listener     *wire.Listener
	caught       chan os.Signal
}

// trimAfter is how long no process must have started or been forgotten before memory is given back.
const trimAfter = 2 * time.Second

// Run serves until Quit, or SIGTERM while nothing runs. There is no other way to end it in peace.
// Errors: Busy if another monitor serves the socket.
func Run(opts Options) error {
	tune()
	if err := os.MkdirAll(opts.State, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	m := &Monitor{
		dir: opts.State, opts: opts, tasks: task.New(context.Background()), caught: make(chan os.Signal, 16),
		procs: map[string]*process{}, pids: map[int]*process{}, early: map[int]unix.WaitStatus{}, conns: map[*peer]struct{}{},
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	// Not the thread's: this one may be a thread that has joined another for a moment.
	pidNS, err := unix.Open(fmt.Sprintf("/proc/%d/ns/pid", os.Getpid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("own pid namespace: %w", err)
	}
	m.self, m.pidNS = ownBinary(), pidNS
	m.trim = time.AfterFunc(trimAfter, debug.FreeOSMemory)
	if opts.Handover.State != 0 {
		if err := m.resume(); err != nil {
			return err
		}
	} else {
		if m.listener, err = wire.Listen(opts.Socket); err != nil {
			return err
		}
		if err := m.recall(); err != nil {
			return fmt.Errorf("exit records: %w", err)
		}
	}
	m.tasks.Go("signals", m.signals)
	slog.Info("monitor serves", "socket", opts.Socket, "pid", os.Getpid(), "build", version.Build, "processes", len(m.procs))
	return m.accept()
}

// accept takes connections for ever.
func (m *Monitor) accept() error {
	for {
		err := m.listener.Wait()
		m.steps.enter()
		var conn *wire.Conn
		if err == nil {
			conn, err = m.listener.Accept()
		}
		if err == nil {
			m.serve(conn)
		}
		m.steps.leave()
		if err != nil {
			// Out of descriptors, most likely; those who are connected go on.
			slog.Error("connection not accepted", "error", err)
			if errors.Is(err, os.ErrClosed) {
				return err
			}
			<-time.After(100 * time.Millisecond) // the listener stays readable: no spinning
		}
	}
}

// tune makes the process small and hard to end by accident.
func tune() {
	_, _ = unix.Setsid() // fails for a session leader, which is as good
	smallPages()
	debug.SetGCPercent(40)
	debug.SetMemoryLimit(24 << 20)
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), 4))
	// The last to be chosen by the OOM killer; init puts the workload's own score. Denied without CAP_SYS_RESOURCE.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
}

// smallPages runs this binary anew without huge pages: where they are always on, a heap of one megabyte costs two to
// four. The Go runtime has touched its heap before we are asked, but the wish survives execve. init takes it back, so
// that workloads do not inherit it. Source: kernel transhuge.rst; prctl(2), PR_SET_THP_DISABLE.
func smallPages() {
	mode, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil || !bytes.Contains(mode, []byte("[always]")) {
		return
	}
	if off, err := unix.PrctlRetInt(unix.PR_GET_THP_DISABLE, 0, 0, 0, 0); err != nil || off != 0 {
		return
	}
	if unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0) == nil {
		err := syscall.Exec("/proc/self/exe", os.Args, os.Environ())
		slog.Warn("the monitor keeps huge pages and costs more memory", "error", err)
	}
}

// ownBinary names this binary through a read-only mount of its own that nobody else sees: a container that manages to
// run its init's /proc/PID/exe again cannot open it for writing, and an upgrade on disk does not mix builds.
func ownBinary() string {
	const exe = "/proc/self/exe"
	tree, err := unix.OpenTree(unix.AT_FDCWD, exe, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	if err != nil {
		slog.Warn("init runs from a writable mount", "error", err)
		return exe
	}
	return fmt.Sprintf("/proc/self/fd/%d", tree)
}

// handled are the signals that do not end the monitor by themselves.
var handled = []os.Signal{unix.SIGCHLD, unix.SIGHUP, unix.SIGINT, unix.SIGPIPE, unix.SIGTERM}

// signals handles those sent to the monitor itself. Handlers, not SIG_IGN: what is ignored stays so in containers.
func (m *Monitor) signals(ctx context.Context) {
	signal.Notify(m.caught, handled...)
	reap := func() {
		m.steps.enter()
		defer m.steps.leave()
		m.reap()
	}
	reap() // what ended before the handler was there
	for s := range m.caught {
		switch s {
		case unix.SIGCHLD:
			reap()
		case unix.SIGTERM:
			if n := m.running(); n > 0 {
				slog.Warn("SIGTERM ignored: containers run", "count", n)
				continue
			}
			slog.Info("monitor ends", "signal", "SIGTERM")
			os.Exit(0)
		}
	}
}

func (m *Monitor) running() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.starting
	for _, p := range m.procs {
		p.mu.Lock()
		if !p.died {
			n++
		}
		p.mu.Unlock()
	}
	return n
}

func (m *Monitor) find(id string) (*process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.procs[id]
	if p == nil || p.m == nil { // reserved by a start that is under way
		return nil, fault.New(fault.NotFound, "process %s: the monitor keeps none of that id", id)
	}
	return p, nil
}

// peer is one connection. Its outbox keeps a slow client from holding up anybody else.
type peer struct {
	conn *wire.Conn

	mu     sync.Mutex
	outbox []frame
	wake   chan struct{}
	busy   bool // a frame is being sent
	closed bool
}

type frame struct {
	reply wire.Reply
	files []*os.File
	after func()
}

// maxOutbox is how many frames a client may leave unread before it is disconnected. It loses nothing: exits are
// repeated when it connects again.
const maxOutbox = 20_000

func (m *Monitor) serve(conn *wire.Conn) *peer {
	p := &peer{conn: conn, wake: make(chan struct{}, 1)}
	m.mu.Lock()
	m.conns[p] = struct{}{}
	m.mu.Unlock()
	m.tasks.Go("write to client", p.writeLoop)
	m.tasks.Go("read from client", func(ctx context.Context) {
		defer func() {
			m.mu.Lock()
			delete(m.conns, p)
			m.mu.Unlock()
			p.close()
		}()
		for {
			if err := conn.Wait(); err != nil {
				return
			}
			m.calls.enter()
			var req wire.Request
			fds, err := conn.Recv(&req)
			if err == nil {
				m.handle(p, &req, fds)
			}
			m.calls.leave()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
					slog.Warn("client dropped", "error", err)
				}
				return
			}
		}
	})
	return p
}

func (p *peer) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.closed = true
		close(p.wake)
		_ = p.conn.Close()
	}
}

// send queues a frame. after, if any, runs when the frame was sent or cannot be.
func (p *peer) send(f frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.outbox) >= maxOutbox {
		if f.after != nil {
			f.after()
		}
		if !p.closed {
			slog.Warn("client dropped: it does not read", "waiting", len(p.outbox))
			_ = p.conn.Close() // the reader notices and cleans up
		}
		return
	}
	p.outbox = append(p.outbox, f)
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *peer) writeLoop(context.Context) {
	for range p.wake {
		for {
			p.mu.Lock()
			p.busy = false
			if len(p.outbox) == 0 {
				p.outbox = nil
				p.mu.Unlock()
				break
			}
			f := p.outbox[0]
			p.outbox = p.outbox[1:]
			p.busy = true
			p.mu.Unlock()
			err := p.conn.Send(f.reply, f.files...)
			if f.after != nil {
				f.after()
			}
			if err != nil {
				// A file may have been closed meanwhile; the reply must still arrive.
				if fault.Is(err, fault.Invalid) && len(f.files) > 0 {
					f.reply.Error = wire.FromError("protocol", err)
					f.reply.Started = nil
					err = p.conn.Send(f.reply)
				}
				if err != nil {
					_ = p.conn.Close()
				}
			}
		}
	}
}

func (m *Monitor) broadcast(r wire.Reply) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.conns {
		p.send(frame{reply: r})
	}
}

// goCall runs what may wait for a disk, a mount or a container: a task that is part of its request.
func (m *Monitor) goCall(name string, fn func()) {
	m.calls.again()
	m.tasks.Go(name, func(context.Context) {
		defer m.calls.leave()
		fn()
	})
}

// handle answers one request.
func (m *Monitor) handle(p *peer, req *wire.Request, fds []int) {
	answer := func(err error) {
		r := wire.Reply{Seq: req.Seq}
		if err != nil {
			r.Error = errorOf(err)
		}
		p.send(frame{reply: r})
	}
	if req.Start == nil && req.Attach == nil && req.Adopt == nil && len(fds) > 0 {
		wire.CloseAll(fds)
		fds = nil
	}
	switch {
	case req.Hello != nil:
		p.send(frame{reply: wire.Reply{Seq: req.Seq, Hello: hello()}})
		m.repeatExits(p)
	case req.Start != nil:
		m.trim.Reset(trimAfter)
		m.goCall("start "+req.Start.ID, func() { m.handleStart(p, req, fds) })
	case req.Adopt != nil:
		m.goCall("adopt "+req.Adopt.Process.ID, func() { answer(m.adopt(req.Adopt.Process, fds)) })
	case req.Attach != nil:
		for _, fd := range fds {
			_ = unix.SetNonblock(fd, true)
		}
		files := wire.Polled(fds, []string{"attach"})
		proc, err := m.find(req.Attach.ID)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			answer(err)
			return
		}
		answer(proc.attach(req.Attach, files))
	case req.List != nil:
		m.list(p, req.Seq)
	case req.Forget != nil:
		m.trim.Reset(trimAfter)
		answer(m.forget(req.Forget.ID))
	case req.Quit != nil:
		m.quit(p, req.Seq)
	case req.Signal != nil, req.Resize != nil, req.Reopen != nil:
		m.goCall("request", func() { answer(m.control(req)) })
	case req.Upgrade != nil: // not part of the calls that it waits for
		m.tasks.Go("upgrade", func(context.Context) { answer(m.upgrade(req.Upgrade.Binary, p, req.Seq)) })
	default:
		answer(fault.New(fault.Unsupported, "request %d: this monitor (protocol %d) does not know it", req.Seq, wire.Version))
	}
}

func hello() *wire.Hello {
	return &wire.Hello{Version: wire.Version, Pid: os.Getpid(), Build: version.Build}
}

func errorOf(err error) *wire.Error {
	var s *wire.StageError
	if errors.As(err, &s) {
		return &wire.Error{Kind: int(fault.Of(err)), Stage: s.Stage, Text: s.Unwrap().Error()}
	}
	return wire.FromError("", err)
}

func (m *Monitor) control(req *wire.Request) error {
	switch {
	case req.Signal != nil:
		p, err := m.find(req.Signal.ID)
		if err != nil {
			return err
		}
		return p.signal(unix.Signal(req.Signal.Signal), req.Signal.All)
	case req.Resize != nil:
		p, err := m.find(req.Resize.ID)
		if err != nil {
			return err
		}
		return p.resize(req.Resize.Width, req.Resize.Height)
	default:
		p, err := m.find(req.Reopen.ID)
		if err != nil {
			return err
		}
		if p.log == nil {
			return fault.New(fault.Invalid, "process %s has no log", req.Reopen.ID)
		}
		return p.log.reopen()
	}
}

// repeatExits tells a new connection what ended while nobody listened. What a predecessor recorded waits for Adopt
// or List: output may still be in the pipes that only the runtime holds.
func (m *Monitor) repeatExits(to *peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.procs {
		if p.m == nil {
			continue
		}
		p.mu.Lock()
		if p.info.Exit != nil && !p.old {
			to.send(frame{reply: wire.Reply{Exit: p.info.Exit}})
		}
		p.mu.Unlock()
	}
}

func (m *Monitor) list(to *peer, seq uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.procs {
		if p.m == nil {
			continue
		}
		p.mu.Lock()
		info := p.info
		var files []*os.File
		if info.Exit == nil {
			files, info.Files = p.files()
		}
		p.mu.Unlock()
		to.send(frame{reply: wire.Reply{Seq: seq, List: []wire.Process{info}}, files: files})
	}
	to.send(frame{reply: wire.Reply{Seq: seq}})
}

func (m *Monitor) quit(to *peer, seq uint64) {
	if n := m.running(); n > 0 {
		to.send(frame{reply: wire.Reply{Seq: seq, Error: wire.FromError("", fault.New(fault.Busy, "%d processes run", n))}})
		return
	}
	to.send(frame{reply: wire.Reply{Seq: seq}, after: func() {
		slog.Info("monitor ends", "reason", "Quit")
		os.Exit(0)
	}})
}
