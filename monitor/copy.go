package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// teeSize is how much of a pipe is looked at at once: two whole records and a bit.
const teeSize = 2*lineLimit + 4096

// pipeSize is what a container's pipe must hold so that a record's worth of bytes always fits, however they were
// written: the kernel fills pages badly (two neighbours together hold just over one), and a tail waits in the pipe.
const pipeSize = 64 << 10

// work is what one busy stream needs for a moment; idle streams hold none of it.
type work struct {
	r, w int // a private pipe, for tee
	raw  []byte
	out  []byte
}

var free struct {
	mu   sync.Mutex
	list []*work
}

const keepFree = 2

func takeWork() (*work, error) {
	free.mu.Lock()
	if n := len(free.list); n > 0 {
		w := free.list[n-1]
		free.list = free.list[:n-1]
		free.mu.Unlock()
		return w, nil
	}
	free.mu.Unlock()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	ensureSize(p[0])
	return &work{r: p[0], w: p[1], raw: make([]byte, teeSize)}, nil
}

func (w *work) give() {
	free.mu.Lock()
	defer free.mu.Unlock()
	if len(free.list) < keepFree && w.raw != nil {
		free.list = append(free.list, w)
		return
	}
	unix.Close(w.r)
	unix.Close(w.w)
}

// ensureSize undoes the shrinking of new pipes that the kernel does to users with many of them.
func ensureSize(fd int) {
	if n, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0); err == nil && n < pipeSize {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
	}
}

// peek returns up to limit of the pipe's first bytes and leaves them there. No bytes and no error: end of file.
// Errors: EAGAIN if it is empty and has writers.
func (w *work) peek(pipe, limit int) ([]byte, error) {
	n, err := retry(func() (int, error) {
		n, err := unix.Tee(pipe, w.w, limit, unix.SPLICE_F_NONBLOCK)
		return int(n), err
	})
	if err != nil || n == 0 {
		return nil, err
	}
	for got := 0; got < n; {
		m, err := retry(func() (int, error) { return unix.Read(w.r, w.raw[got:n]) })
		if err != nil || m == 0 {
			w.raw = nil // the private pipe is out of step: give() throws it away
			return nil, fmt.Errorf("read what was peeked: %w", err)
		}
		got += m
	}
	return w.raw[:n], nil
}

func retry(fn func() (int, error)) (int, error) {
	for {
		n, err := fn()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// pipeCopier moves one stream of a container into its log and to its attached clients.
type pipeCopier struct {
	p      *process
	stream int
}

// run returns when every writer has closed the pipe and all was copied, or the pipe was closed on our side.
func (c *pipeCopier) run(context.Context) {
	defer c.p.streamDone(c.stream)
	raw, err := c.p.pipes[c.stream].SyscallConn()
	if err != nil {
		return
	}
	var inner error
	err = raw.Read(func(fd uintptr) bool {
		var done bool
		done, inner = c.drain(int(fd))
		return done || inner != nil
	})
	if err == nil {
		err = inner
	}
	if err != nil && !errors.Is(err, os.ErrClosed) {
		slog.Error("output copying ended", "id", c.p.info.ID, "stream", streamNames[c.stream], "error", err)
	}
}

// drain copies what is there. It reports true at the end of the stream and false when the poller should wait for more.
func (c *pipeCopier) drain(fd int) (bool, error) {
	w, err := takeWork()
	if err != nil {
		return false, err
	}
	defer w.give()
	look := look{before: -1}
	for {
		c.p.m.steps.enter()
		stop, err := c.step(w, fd, &look)
		c.p.m.steps.leave()
		if stop != goOn || err != nil {
			return stop == atEnd, err
		}
	}
}

// look is what the last look at a pipe has found out for the next one.
type look struct {
	tail   byte // how to tag an unfinished line; 0: leave it
	before int  // how much of the unfinished line there was; -1: none
}

type outcome int

const (
	goOn outcome = iota
	wait
	atEnd
)

// step moves one batch, or finds out why not.
func (c *pipeCopier) step(w *work, fd int, look *look) (outcome, error) {
	data, err := w.peek(fd, teeSize)
	if err == unix.EAGAIN {
		return wait, nil
	}
	if err != nil {
		return wait, err
	}
	if len(data) == 0 {
		return atEnd, nil
	}
	shown := &c.p.shown[c.stream]
	if len(data) > *shown {
		c.p.fan(c.stream, data[*shown:])
		*shown = len(data)
	}
	at := time.Now()
	out, used := format(w.out[:0], data, c.stream, at, look.tail)
	w.out = out[:0]
	if used == 0 {
		// An unfinished line waits in the pipe, unless nobody can finish it (F), or the pipe holds more than a second
		// look shows, which takes a writer of very many tiny packets (P).
		switch held, err := unix.IoctlGetInt(fd, unix.TIOCINQ); {
		case hungUp(fd):
			look.tail = 'F'
		case err != nil || held <= len(data):
			return wait, nil
		case len(data) <= look.before:
			look.tail = 'P'
		default:
			look.before = len(data)
		}
		return goOn, nil
	}
	if err := c.p.log.commit(fd, c.stream, at, data[:used], out, look.tail); err != nil {
		return wait, err
	}
	*shown = max(0, *shown-used)
	look.tail, look.before = 0, -1
	return goOn, nil
}

func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	_, err := retry(func() (int, error) { return unix.Poll(p, 0) })
	return err == nil && p[0].Revents&unix.POLLHUP != 0
}

// ptyCopier does the same for a terminal. Bytes in flight are lost if the monitor is killed: a terminal cannot be
// peeked. An unfinished line waits in memory.
type ptyCopier struct{ p *process }

func (c *ptyCopier) run(context.Context) {
	defer c.p.streamDone(0)
	raw, err := c.p.pty.SyscallConn()
	if err != nil {
		return
	}
	err = raw.Read(func(fd uintptr) bool { return c.drain(int(fd)) })
	if err != nil && !errors.Is(err, os.ErrClosed) {
		slog.Error("terminal copying ended", "id", c.p.info.ID, "error", err)
	}
	c.p.m.steps.enter()
	defer c.p.m.steps.leave()
	c.log(nil, true)
}

func (c *ptyCopier) drain(fd int) bool {
	w, err := takeWork()
	if err != nil {
		slog.Error("terminal copying ended", "id", c.p.info.ID, "error", err)
		return true
	}
	defer w.give()
	for {
		switch c.step(w, fd) {
		case wait:
			return false
		case atEnd:
			return true
		}
	}
}

func (c *ptyCopier) step(w *work, fd int) outcome {
	c.p.m.steps.enter()
	defer c.p.m.steps.leave()
	n, err := retry(func() (int, error) { return unix.Read(fd, w.raw) })
	if err == unix.EAGAIN {
		return wait
	}
	if err != nil || n == 0 { // EIO: the last one on the other side has gone
		return atEnd
	}
	c.p.fan(0, w.raw[:n])
	c.log(w.raw[:n], false)
	return goOn
}

func (c *ptyCopier) log(data []byte, final bool) {
	c.p.tail = append(c.p.tail, data...)
	var tag byte
	if final {
		tag = 'F'
	}
	for len(c.p.tail) > 0 {
		out, used := format(nil, c.p.tail, 0, time.Now(), tag)
		if used == 0 {
			return
		}
		c.p.log.mu.Lock()
		c.p.log.write(out)
		c.p.log.mu.Unlock()
		c.p.tail = append(c.p.tail[:0], c.p.tail[used:]...)
	}
	c.p.tail = nil
}
