package monitor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/wire"
)

// drainLimit bounds how long an exit waits for output when another process still holds the pipes.
const drainLimit = 10 * time.Second

// process is one container or exec. mu guards what changes while it runs; the rest is set before it is shared.
type process struct {
	m       *Monitor
	pidfd   *os.File
	pipes   [2]*os.File // read ends of stdout and stderr; nil with a terminal and for an exec
	pty     *os.File    // master
	log     *logfile    // nil for an exec
	drained chan struct{}
	adopted bool // not our child: waited for by its pidfd

	// Of the copiers, which touch them between steps.enter and leave.
	shown [2]int // bytes at the head of each pipe that attached clients have seen
	tail  []byte // a terminal's unfinished line

	mu     sync.Mutex
	info   wire.Process // Exit is nil until the output is drained
	slave  *os.File     // held so that the terminal does not end before the process does
	stdin  *os.File     // write end
	died   bool         // reaped; Exit follows
	open   int          // streams still being copied
	sinks  []*sink
	inputs []*input   // of attached clients
	ending *wire.Exit // how it died, until the output is drained
	old    bool       // recorded by a predecessor and not adopted: announced by List alone
}

// checkID keeps ids harmless as file names. No regexp: compiling one would cost every init, which is this same
// binary, more than all its mounts.
func checkID(id string) error {
	ok := len(id) > 0 && len(id) <= 128 && id[0] != '.' && id[0] != '-'
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-'
	}
	if !ok {
		return fault.New(fault.Invalid, "id %q: not 1 to 128 letters, digits, '_', '.', '-'", id)
	}
	return nil
}

// files are the keeper's descriptors in the order that names tells. The caller holds mu.
func (p *process) files() (files []*os.File, names []string) {
	add := func(name string, f *os.File) {
		if f != nil {
			files, names = append(files, f), append(names, name)
		}
	}
	add("stdout", p.pipes[0])
	add("stderr", p.pipes[1])
	add("stdin", p.stdin)
	add("pty", p.pty)
	add("pidfd", p.pidfd)
	if p.log != nil && p.log.journal != nil {
		add("journal", p.log.journal.file)
	}
	return files, names
}

// startCopying begins to move output. It is called once, when everything else is in place.
func (p *process) startCopying() {
	p.drained = make(chan struct{})
	for i, f := range p.pipes {
		if f != nil {
			p.open++
			c := &pipeCopier{p: p, stream: i}
			defer p.m.tasks.Go("copy "+p.info.ID, c.run)
		}
	}
	if p.pty != nil {
		p.open++
		c := &ptyCopier{p: p}
		defer p.m.tasks.Go("copy "+p.info.ID, c.run)
	}
	if p.open == 0 {
		close(p.drained)
	}
}

// streamDone notes that a stream has ended, and tells its attached clients.
func (p *process) streamDone(stream int) {
	p.mu.Lock()
	p.open--
	last := p.open == 0
	sinks := p.sinks
	p.mu.Unlock()
	for _, s := range sinks {
		if s.stream == stream {
			s.finish()
		}
	}
	if last {
		close(p.drained)
	}
}

// release gives back everything but the record. It may wait for a copier that waits for a slow disk.
func (p *process) release() {
	p.mu.Lock()
	sinks, inputs := p.sinks, p.inputs
	files := []*os.File{p.pipes[0], p.pipes[1], p.stdin, p.pty, p.slave, p.pidfd}
	p.sinks, p.inputs, p.stdin, p.slave = nil, nil, nil, nil
	p.mu.Unlock()
	for _, s := range sinks {
		s.finish()
	}
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
	closeInputs(inputs)
	if p.log != nil {
		if p.drained != nil {
			<-p.drained
		}
		p.log.close()
	}
}

// closeStdin ends the process' input for good; every keeper is told to drop its duplicate.
func (p *process) closeStdin() {
	p.mu.Lock()
	f := p.stdin
	p.stdin = nil
	p.info.Stdin = false
	p.mu.Unlock()
	if f != nil {
		f.Close()
		p.m.broadcast(wire.Reply{StdinClosed: p.info.ID})
	}
}

// resize sets the terminal's size.
func (p *process) resize(width, height uint16) error {
	if p.pty == nil {
		return fault.New(fault.Invalid, "process %s: resize: it has no terminal here", p.info.ID)
	}
	return setSize(p.pty, width, height)
}

func setSize(f *os.File, width, height uint16) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	err = raw.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	})
	if err == nil {
		err = ierr
	}
	if err != nil {
		return fmt.Errorf("set terminal size %dx%d: %w", width, height, err)
	}
	return nil
}

// signalled turns a wait status into an Exit as users of shells know it.
func exitOf(id string, st unix.WaitStatus, at time.Time) wire.Exit {
	if st.Signaled() {
		return wire.Exit{ID: id, Code: 128 + int(st.Signal()), Signal: int(st.Signal()), At: at}
	}
	return wire.Exit{ID: id, Code: st.ExitStatus(), At: at}
}

// finish is called once, when the process has died, amid a step or a call: it writes the record at once; end follows.
func (p *process) finish(exit wire.Exit) {
	p.mu.Lock()
	if p.died {
		p.mu.Unlock()
		return
	}
	p.died = true
	exit.OOMKilled = oomKilled(p.info.OOMFile)
	p.ending = &exit
	slave := p.slave
	p.slave = nil
	p.mu.Unlock()
	p.m.remember(p, exit)
	if slave != nil {
		slave.Close()
	}
	p.m.tasks.Go("end "+p.info.ID, p.end)
}

// end tells the runtime of a death once all output is in the log.
func (p *process) end(ctx context.Context) {
	timer := time.NewTimer(drainLimit)
	defer timer.Stop()
	select {
	case <-p.drained:
	case <-timer.C:
		slog.Warn("the process has exited but another holds its output open", "id", p.info.ID, "waited", drainLimit)
	case <-ctx.Done():
		return
	}
	p.m.steps.enter()
	defer p.m.steps.leave()
	p.mu.Lock()
	exit := p.ending
	p.info.Exit, p.ending = exit, nil
	p.info.Files = nil
	inputs := p.inputs
	p.inputs = nil
	p.mu.Unlock()
	closeInputs(inputs)
	p.m.broadcast(wire.Reply{Exit: exit})
}
