package monitor

import (
	"context"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/wire"
)

// Bounds of what attached clients may cost.
const (
	maxSinks   = 64      // per process
	maxBacklog = 1 << 20 // bytes that a slow client may be behind before it is dropped
)

// sink is one output of one attached client. It never makes the container wait: what the client does not take at once
// is kept for a while, and then the client is dropped.
type sink struct {
	p      *process
	stream int
	file   *os.File

	mu      sync.Mutex
	backlog []byte
	busy    bool // a task writes the backlog
	ended   bool // no more will come
	dead    bool
}

// write takes data without blocking.
func (s *sink) write(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || s.ended {
		return
	}
	if !s.busy {
		n, err := s.try(data)
		if err != nil {
			s.drop()
			return
		}
		data = data[n:]
	}
	if len(data) == 0 {
		return
	}
	if len(s.backlog)+len(data) > maxBacklog {
		s.drop()
		return
	}
	s.backlog = append(s.backlog, data...)
	s.start()
}

// start makes sure that the backlog is being written. The caller holds mu.
func (s *sink) start() {
	if !s.busy {
		s.busy = true
		s.p.m.tasks.Go("attach "+s.p.info.ID, func(context.Context) { s.flush() })
	}
}

// goOn continues what the build before had begun.
func (s *sink) goOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.backlog) > 0 || s.ended {
		s.start()
	}
}

// try writes what the client takes right now.
func (s *sink) try(data []byte) (int, error) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	cerr := raw.Control(func(fd uintptr) { n, err = retry(func() (int, error) { return unix.Write(int(fd), data) }) })
	if cerr != nil {
		return 0, cerr
	}
	if err == unix.EAGAIN {
		return 0, nil
	}
	return max(n, 0), err
}

// flush writes the backlog as the client takes it.
func (s *sink) flush() {
	raw, err := s.file.SyscallConn()
	if err == nil {
		err = raw.Write(s.writeSome)
	}
	if err != nil { // closed meanwhile
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy = false
		s.drop()
	}
}

// writeSome reports whether the backlog is done with; false when the client takes no more now.
func (s *sink) writeSome(fd uintptr) bool {
	s.p.m.steps.enter()
	defer s.p.m.steps.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.backlog) > 0 && !s.dead {
		n, err := retry(func() (int, error) { return unix.Write(int(fd), s.backlog) })
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			s.drop()
			break
		}
		s.backlog = s.backlog[n:]
	}
	s.backlog, s.busy = nil, false
	if s.ended {
		s.drop()
	}
	return true
}

// finish closes the client's end as soon as it has taken its backlog.
func (s *sink) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if !s.busy {
		s.drop()
	}
}

// drop closes the client's end now. The caller holds mu.
func (s *sink) drop() {
	if !s.dead {
		s.dead = true
		s.backlog = nil
		// Close waits for a writer that is inside the call; flush would wait for mu: so not under it.
		f := s.file
		s.p.m.tasks.Go("detach "+s.p.info.ID, func(context.Context) { f.Close() })
	}
}

// gone reports whether the client has closed its end.
func (s *sink) gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return true
	}
	raw, err := s.file.SyscallConn()
	if err != nil {
		return true
	}
	lost := false
	err = raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd)}}
		if n, err := unix.Poll(poll, 0); err == nil && n > 0 {
			lost = poll[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
		}
	})
	return err != nil || lost
}

// fan gives new output to the clients attached to it.
func (p *process) fan(stream int, data []byte) {
	p.mu.Lock()
	sinks := p.sinks
	p.mu.Unlock()
	for _, s := range sinks {
		if s.stream == stream {
			s.write(data)
		}
	}
}

// attach connects a client. It owns files, also when it fails.
func (p *process) attach(req *wire.Attach, files []*os.File) error {
	want := 0
	for _, b := range []bool{req.Stdin, req.Stdout, req.Stderr} {
		if b {
			want++
		}
	}
	fail := func(kind fault.Kind, text string) error {
		for _, f := range files {
			f.Close()
		}
		return fault.New(kind, "attach to %s: %s", p.info.ID, text)
	}
	if want != len(files) {
		return fail(fault.Invalid, "the number of descriptors does not match the streams asked for")
	}
	if p.log == nil {
		return fail(fault.Invalid, "it is an exec, whose streams its starter has")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.died {
		return fail(fault.NotFound, "it has exited")
	}
	live := p.sinks[:0:0]
	for _, s := range p.sinks {
		if s.gone() {
			s.finish()
		} else {
			live = append(live, s)
		}
	}
	if len(live)+want > maxSinks {
		return fail(fault.Exhausted, "too many clients are attached")
	}
	if req.Stdin {
		p.input(files[0])
		files = files[1:]
	}
	if req.Stdout {
		live = append(live, &sink{p: p, stream: 0, file: files[0]})
		files = files[1:]
	}
	if req.Stderr {
		s := &sink{p: p, stream: 1, file: files[0]}
		if p.pipes[1] == nil {
			s.finish() // a terminal has one output
		}
		live = append(live, s)
	}
	p.sinks = live
	return nil
}

// input is the stdin of one attached client on its way to the process.
type input struct {
	from *os.File
	held []byte // read and not yet written; touched between steps.enter and leave
}

func closeInputs(list []*input) {
	for _, in := range list {
		in.from.Close()
	}
}

// input copies a client's stdin to the process. The caller holds mu.
func (p *process) input(from *os.File) {
	if p.target() == nil { // the container was made without stdin, or has had its one session
		from.Close()
		return
	}
	p.feed(&input{from: from})
}

// target is where input goes; nil for nowhere.
func (p *process) target() *os.File {
	if p.pty != nil {
		return p.pty
	}
	return p.stdin
}

// feed starts to copy. The caller holds mu, and target is not nil.
func (p *process) feed(in *input) {
	to := p.target()
	p.inputs = append(p.inputs, in)
	p.m.tasks.Go("stdin "+p.info.ID, func(context.Context) {
		for p.put(in, to) == nil && p.get(in) == nil {
		}
		p.m.steps.enter()
		defer p.m.steps.leave()
		in.from.Close()
		p.mu.Lock()
		p.inputs = slices.DeleteFunc(slices.Clone(p.inputs), func(other *input) bool { return other == in })
		once := p.info.StdinOnce && p.pty == nil
		p.mu.Unlock()
		if once {
			p.closeStdin()
		}
	})
}

// get reads what the client has sent. Errors: its end.
func (p *process) get(in *input) error {
	return p.eachTime(in.from, (syscall.RawConn).Read, func(fd int) (err error) {
		buf := make([]byte, 4096)
		n, err := retry(func() (int, error) { return unix.Read(fd, buf) })
		if err == nil && n == 0 {
			return io.EOF
		}
		in.held = buf[:max(n, 0)]
		return err
	})
}

// put writes what was read. Errors: the process takes no more.
func (p *process) put(in *input, to *os.File) error {
	if len(in.held) == 0 {
		return nil
	}
	return p.eachTime(to, (syscall.RawConn).Write, func(fd int) error {
		for len(in.held) > 0 {
			n, err := retry(func() (int, error) { return unix.Write(fd, in.held) })
			if err != nil {
				return err
			}
			in.held = in.held[n:]
		}
		return nil
	})
}

// eachTime runs fn as a step whenever wait finds f ready, until it returns something else than EAGAIN.
func (p *process) eachTime(f *os.File, wait func(syscall.RawConn, func(uintptr) bool) error, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	werr := wait(raw, func(fd uintptr) bool {
		p.m.steps.enter()
		defer p.m.steps.leave()
		err = fn(int(fd))
		return err != unix.EAGAIN
	})
	if werr != nil {
		return werr
	}
	return err
}
