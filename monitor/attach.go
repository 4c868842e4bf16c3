package monitor

import (
	"context"
	"os"
	"sync"

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
	if !s.busy {
		s.busy = true
		s.p.m.tasks.Go("attach "+s.p.info.ID, func(context.Context) { s.flush() })
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

func (s *sink) flush() {
	for {
		s.mu.Lock()
		data := s.backlog
		s.backlog = nil
		if len(data) == 0 || s.dead {
			s.busy = false
			if s.ended && !s.dead {
				s.drop()
			}
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		if _, err := s.file.Write(data); err != nil {
			s.mu.Lock()
			s.drop()
			s.mu.Unlock()
		}
	}
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

// input copies a client's stdin to the process. The caller holds mu.
func (p *process) input(from *os.File) {
	to := p.stdin
	if p.pty != nil {
		to = p.pty
	}
	if to == nil { // the container was made without stdin, or has had its one session
		from.Close()
		return
	}
	p.inputs = append(p.inputs, from)
	p.m.tasks.Go("stdin "+p.info.ID, func(context.Context) {
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				if _, werr := to.Write(buf[:n]); werr != nil {
					err = werr
				}
			}
			if err != nil {
				break
			}
		}
		from.Close()
		p.mu.Lock()
		for i, f := range p.inputs {
			if f == from {
				p.inputs = append(p.inputs[:i:i], p.inputs[i+1:]...)
				break
			}
		}
		once := p.info.StdinOnce && p.pty == nil
		p.mu.Unlock()
		if once {
			p.closeStdin()
		}
	})
}
