package monitor

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/wire"
)

// saved is all that a build leaves to the next. Descriptors keep their numbers.
type saved struct {
	Version   int
	Build     string
	Listener  int
	Processes []savedProcess
	Clients   []savedClient
}

type savedProcess struct {
	Info    wire.Process
	Files   map[string]int `json:",omitempty"` // as in wire.Process.Files, and "slave", "log"
	Died    bool           `json:",omitempty"`
	Old     bool           `json:",omitempty"`
	Adopted bool           `json:",omitempty"`
	Logged  bool           `json:",omitempty"` // a container: its output is copied, to a log or to nowhere
	Losing  bool           `json:",omitempty"`
	Ending  *wire.Exit     `json:",omitempty"`
	Shown   [2]int
	Tail    []byte       `json:",omitempty"`
	Sinks   []savedSink  `json:",omitempty"`
	Inputs  []savedInput `json:",omitempty"`
}

type savedSink struct {
	Fd, Stream int
	Backlog    []byte `json:",omitempty"`
	Ended      bool   `json:",omitempty"`
}

type savedInput struct {
	Fd   int
	Held []byte `json:",omitempty"`
}

type savedClient struct {
	Fd     int
	Answer uint64 `json:",omitempty"` // the request for the upgrade
}

// capture describes everything, and returns the descriptors to keep open. Both gates are shut.
func (m *Monitor) capture(from *peer, seq uint64) (saved, []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := saved{Version: StateVersion, Build: hello().Build}
	_ = m.listener.Raw(func(fd uintptr) { s.Listener = int(fd) })
	keep := []int{s.Listener}
	for _, p := range m.procs {
		one, fds := p.capture()
		s.Processes, keep = append(s.Processes, one), append(keep, fds...)
	}
	for p := range m.conns {
		c := savedClient{}
		if p == from {
			c.Answer = seq
		}
		if p.conn.Raw(func(fd uintptr) { c.Fd = int(fd) }) == nil {
			s.Clients, keep = append(s.Clients, c), append(keep, c.Fd)
		}
	}
	return s, keep
}

func (p *process) capture() (savedProcess, []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := savedProcess{Info: p.info, Died: p.died, Old: p.old, Adopted: p.adopted, Ending: p.ending, Shown: p.shown, Tail: p.tail, Files: map[string]int{}}
	files, names := p.files()
	files, names = append(files, p.slave), append(names, "slave")
	if p.log != nil {
		s.Logged, s.Losing = true, p.log.losing
		files, names = append(files, p.log.file), append(names, "log")
	}
	var keep []int
	use := func(f *os.File) (int, bool) {
		if f == nil || rawFd(f) == ^uintptr(0) {
			return 0, false
		}
		fd := int(rawFd(f))
		keep = append(keep, fd)
		return fd, true
	}
	for i, f := range files {
		if fd, ok := use(f); ok {
			s.Files[names[i]] = fd
		}
	}
	for _, k := range p.sinks {
		if fd, ok := use(k.file); ok && !k.dead {
			s.Sinks = append(s.Sinks, savedSink{fd, k.stream, k.backlog, k.ended})
		}
	}
	for _, in := range p.inputs {
		if fd, ok := use(in.from); ok {
			s.Inputs = append(s.Inputs, savedInput{fd, in.held})
		}
	}
	return s, keep
}

// store puts the state into a file of memory.
func store(s saved) (fd int, err error) {
	body, err := json.Marshal(s)
	if err != nil {
		return 0, fmt.Errorf("state: %w", err)
	}
	if fd, err = unix.MemfdCreate("worknode-monitor-state", unix.MFD_CLOEXEC); err != nil {
		return 0, fmt.Errorf("state: %w", err)
	}
	for at := 0; at < len(body); {
		n, err := unix.Pwrite(fd, body[at:], int64(at))
		if err != nil {
			unix.Close(fd)
			return 0, fmt.Errorf("state: %w", err)
		}
		at += n
	}
	return fd, nil
}

// refuse, if set by the linker, is why this build does not take over. For tests of the way back.
var refuse string

// resume takes over from the build that executed this one. It changes nothing before it has understood everything; when
// it has not, it executes that build again and does not return.
func (m *Monitor) resume() error {
	h := m.opts.Handover
	s, err := load(h.State)
	if err == nil && refuse != "" && h.Back != 0 {
		err = fault.New(fault.Unsupported, "%s", refuse)
	}
	var procs []*process
	if err == nil {
		procs, err = m.restore(s)
	}
	if err != nil {
		if h.Back == 0 {
			return fmt.Errorf("takeover: %w", err)
		}
		slog.Error("this build cannot take over, the one before goes on", "error", err)
		return fmt.Errorf("takeover: %w; and the way back: %w", err, execute(fmt.Sprintf("/proc/self/fd/%d", h.Back), m.opts, Handover{State: h.State, Why: err.Error()}))
	}
	closeOnExec([]int{h.State, h.Back}, true)
	unix.Close(h.State)
	if h.Back != 0 {
		unix.Close(h.Back)
	}
	if m.listener, err = wire.NewListener(s.Listener, m.opts.Socket); err != nil {
		return err
	}
	// An exit that is told before its client is known would be told to nobody.
	m.calls.close(0)
	defer m.calls.open()
	m.steps.close(0)
	defer m.steps.open()
	for _, p := range procs {
		m.goOnWith(p)
	}
	for _, c := range s.Clients {
		m.greet(c, h.Why)
	}
	slog.Info("took over", "from", s.Build, "processes", len(procs), "clients", len(s.Clients))
	return nil
}

func load(fd int) (s saved, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)) // a description of its own: from the start
	if err != nil {
		return s, fmt.Errorf("state: %w", err)
	}
	defer f.Close()
	body, err := io.ReadAll(f)
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	if err != nil {
		return s, fmt.Errorf("state: %w", err)
	}
	if s.Version != StateVersion && s.Version != StateVersion-1 {
		return s, fault.New(fault.Unsupported, "state of version %d, this build reads %d", s.Version, StateVersion)
	}
	return s, nil
}

// restore makes the tables, and takes over the descriptors.
func (m *Monitor) restore(s saved) ([]*process, error) {
	for _, one := range s.Processes {
		for name, fd := range one.Files {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
				return nil, fault.New(fault.Invalid, "state: descriptor %d, %s of %s: %w", fd, name, one.Info.ID, err)
			}
		}
	}
	var procs []*process
	for _, one := range s.Processes {
		p := &process{m: m, info: one.Info, died: one.Died, old: one.Old, adopted: one.Adopted, ending: one.Ending, shown: one.Shown, tail: one.Tail}
		var fds []int
		for _, fd := range one.Files {
			fds = append(fds, fd)
		}
		closeOnExec(fds, true)
		file := func(name string) *os.File {
			fd, ok := one.Files[name]
			if !ok {
				return nil
			}
			return os.NewFile(uintptr(fd), name)
		}
		p.pipes = [2]*os.File{file("stdout"), file("stderr")}
		p.stdin, p.pty, p.slave, p.pidfd = file("stdin"), file("pty"), file("slave"), file("pidfd")
		if one.Logged {
			p.log = &logfile{id: one.Info.ID, path: one.Info.LogPath, file: file("log"), losing: one.Losing}
			if f := file("journal"); f != nil {
				j, err := openJournal(f)
				if err != nil {
					slog.Error("log may miss or repeat lines should the monitor be killed", "id", one.Info.ID, "error", err)
				} else {
					p.log.journal = j
				}
			}
		}
		for _, k := range one.Sinks {
			closeOnExec([]int{k.Fd}, true)
			p.sinks = append(p.sinks, &sink{p: p, stream: k.Stream, file: os.NewFile(uintptr(k.Fd), "attach"), backlog: k.Backlog, ended: k.Ended})
		}
		for _, in := range one.Inputs {
			closeOnExec([]int{in.Fd}, true)
			p.inputs = append(p.inputs, &input{from: os.NewFile(uintptr(in.Fd), "attach"), held: in.Held})
		}
		procs = append(procs, p)
	}
	return procs, nil
}

// goOnWith sets in motion what was under way for a process.
func (m *Monitor) goOnWith(p *process) {
	m.mu.Lock()
	m.procs[p.info.ID] = p
	if !p.died && !p.adopted {
		m.pids[p.info.Pid] = p
	}
	m.mu.Unlock()
	if p.old {
		return
	}
	if p.log != nil { // nothing is to be done, unless a build before forgot to come to rest
		if err := p.log.recoverBatch(p.pipes); err != nil {
			slog.Error("log may miss or repeat lines", "id", p.info.ID, "error", err)
		}
	}
	p.startCopying()
	p.mu.Lock()
	inputs := p.inputs
	p.inputs = nil
	for _, in := range inputs {
		if p.target() != nil {
			p.feed(in)
		} else {
			in.from.Close()
		}
	}
	for _, k := range p.sinks {
		k.goOn()
	}
	p.mu.Unlock()
	switch {
	case p.ending != nil:
		m.tasks.Go("end "+p.info.ID, p.end)
	case !p.died && p.adopted:
		m.tasks.Go("wait "+p.info.ID, p.wait)
	}
}

// greet serves a client that has known us for longer than this build.
func (m *Monitor) greet(c savedClient, why string) {
	closeOnExec([]int{c.Fd}, true)
	conn, err := wire.NewConn(c.Fd)
	if err != nil {
		slog.Warn("client dropped", "error", err)
		return
	}
	p := m.serve(conn)
	if c.Answer == 0 {
		return
	}
	r := wire.Reply{Seq: c.Answer, Hello: hello()}
	if why != "" {
		r = wire.Reply{Seq: c.Answer, Error: &wire.Error{Kind: int(fault.Unsupported), Text: "the new build could not take over: " + why}}
	}
	p.send(frame{reply: r})
}
