// Package client is the runtime's end of the connection to worknode-monitor.
// It keeps no state about containers beyond the descriptors it must close on the monitor's word.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/wire"
	"worknode/task"
)

// Client is one connection. All methods may be called from several goroutines. When the monitor dies, every call
// fails with Temporary and Done closes: start a new monitor, Dial, and Adopt everything before anything else.
type Client struct {
	conn *wire.Conn
	done chan struct{}
	pid  int
	peer int // protocol version of the monitor

	mu     sync.Mutex
	seq    uint64
	calls  map[uint64]*call
	err    error               // why the connection ended
	stdin  map[string]*os.File // kept stdin pipes, by process
	exits  []wire.Exit         // not yet taken from the channel
	notify chan struct{}
	out    chan wire.Exit
}

type call struct {
	polled  bool // descriptors are for use, not for keeping
	replies chan answer
	all     []answer // of a List
}

type answer struct {
	reply wire.Reply
	files []*os.File
	err   error
}

// Kept is a process as the monitor lists it, with the descriptors to keep for it.
type Kept struct {
	wire.Process
	Files []*os.File
}

// dialLimit bounds the greeting.
const dialLimit = 5 * time.Second

// Dial connects and greets. Exits that the monitor has not been told to forget arrive on Exits at once.
// Errors: NotFound if there is no socket, Temporary if no monitor answers on it, Unsupported if it is too old or new.
func Dial(ctx context.Context, socket string) (*Client, error) {
	conn, err := wire.Dial(socket)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, done: make(chan struct{}), calls: map[uint64]*call{}, stdin: map[string]*os.File{},
		notify: make(chan struct{}, 1), out: make(chan wire.Exit)}
	tasks := task.New(context.Background()) // ended by the connection's end, not by a context
	tasks.Go("read from monitor", func(context.Context) { c.readLoop() })
	tasks.Go("exits from monitor", func(context.Context) { c.exitLoop() })
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	a, err := c.call(ctx, &call{}, wire.Request{Hello: &wire.Hello{Version: wire.Version, Pid: os.Getpid()}})
	if err == nil && (a.reply.Hello == nil || a.reply.Hello.Version < wire.Version-1) {
		err = fault.New(fault.Unsupported, "it does not speak protocol %d", wire.Version)
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("monitor at %s: %w", socket, err)
	}
	c.pid, c.peer = a.reply.Hello.Pid, a.reply.Hello.Version
	return c, nil
}

// Pid is the monitor's process id.
func (c *Client) Pid() int { return c.pid }

// Close ends the connection; the monitor and its processes go on.
func (c *Client) Close() error { return c.conn.Close() }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why the connection ended; nil while it has not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Exits delivers every exit, and those repeated on connecting. None is dropped however slowly it is read.
// It is never closed; select on Done too.
func (c *Client) Exits() <-chan wire.Exit { return c.out }

// Start clones a process and returns when it has executed its program. stdio is for an exec without a terminal:
// stdin, stdout, stderr, which the caller still closes. The files returned are the keeper's (wire.Process.Files names
// them): hold them until Forget, touch nothing. An exec with a terminal instead gets its master to use and close.
// Process.Warnings says what init had to leave out for lack of rights; log it.
// Errors: those of init, with the stage in front; *wire.StageError tells the stage, wire.StageExec meaning that the
// program could not be run (NotFound: it is absent). NotFound if Join is not running, Exists if the ID is taken.
func (c *Client) Start(ctx context.Context, req wire.Start, stdio []*os.File) (wire.Process, []*os.File, error) {
	a, err := c.call(ctx, &call{polled: req.Join != ""}, wire.Request{Start: &req}, stdio...)
	if err != nil {
		return wire.Process{}, nil, fmt.Errorf("start %s: %w", req.ID, err)
	}
	if a.reply.Started == nil {
		return wire.Process{}, nil, fault.New(fault.Unsupported, "start %s: the monitor's answer is empty", req.ID)
	}
	return *a.reply.Started, a.files, nil
}

// Signal sends sig to the process, or with all to every process of its container or exec.
// Errors: NotFound if it has exited or is not known.
func (c *Client) Signal(ctx context.Context, id string, sig int, all bool) error {
	return c.simple(ctx, "signal "+id, wire.Request{Signal: &wire.Signal{ID: id, Signal: sig, All: all}})
}

// Reopen makes the monitor write id's log to a new file at its path. The new file exists when it returns.
func (c *Client) Reopen(ctx context.Context, id string) error {
	return c.simple(ctx, "reopen the log of "+id, wire.Request{Reopen: &wire.Reopen{ID: id}})
}

// Attach connects files (stdin, stdout, stderr, as the flags say) to a container. The caller still closes its own.
func (c *Client) Attach(ctx context.Context, req wire.Attach, files []*os.File) error {
	return c.simple(ctx, "attach to "+req.ID, wire.Request{Attach: &req}, files...)
}

// Resize sets the size of a container's terminal, in characters. For an exec's terminal use SetSize on its master.
func (c *Client) Resize(ctx context.Context, id string, width, height uint16) error {
	return c.simple(ctx, "resize "+id, wire.Request{Resize: &wire.Resize{ID: id, Width: width, Height: height}})
}

// SetSize sets the size of the terminal behind its master, in characters.
func SetSize(master *os.File, width, height uint16) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	err = raw.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	})
	return errors.Join(err, ierr)
}

// List returns all processes that the monitor keeps, exited ones included, with the descriptors to keep for them.
func (c *Client) List(ctx context.Context) ([]Kept, error) {
	a, err := c.call(ctx, &call{}, wire.Request{List: &wire.List{}})
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []Kept
	for _, part := range a.list {
		for _, p := range part.reply.List {
			out = append(out, Kept{p, part.files})
		}
	}
	return out, nil
}

// Adopt gives a dead monitor's process to this one, with the files kept for it; the caller goes on keeping them.
// Its exit arrives as any other, at once if it has happened. Errors: Exists if this monitor keeps it already.
func (c *Client) Adopt(ctx context.Context, p wire.Process, files []*os.File) error {
	if len(files) != len(p.Files) {
		return fault.New(fault.Invalid, "adopt %s: %d files, %d names", p.ID, len(files), len(p.Files))
	}
	// A stdin pipe that was closed on the monitor's word is gone for good.
	var names []string
	var live []*os.File
	for i, f := range files {
		if isOpen(f) {
			names, live = append(names, p.Files[i]), append(live, f)
		}
	}
	p.Files = names
	c.keepStdin(p.ID, names, live)
	return c.simple(ctx, "adopt "+p.ID, wire.Request{Adopt: &wire.Adopt{Process: p}}, live...)
}

func isOpen(f *os.File) bool {
	raw, err := f.SyscallConn()
	return err == nil && raw.Control(func(uintptr) {}) == nil
}

// Forget drops an exited process and its record; the caller closes its files. May be repeated.
// Errors: Busy if it still runs.
func (c *Client) Forget(ctx context.Context, id string) error {
	c.mu.Lock()
	delete(c.stdin, id)
	c.mu.Unlock()
	return c.simple(ctx, "forget "+id, wire.Request{Forget: &wire.Forget{ID: id}})
}

// Upgrade has the monitor execute another binary in its place and returns what build it then is. Everything goes on,
// this connection too; exits may be repeated.
// Errors: Unsupported if the monitor is too old to do so; Invalid, Unsupported for the binary, Busy for now: it goes on as
// it was; Temporary if it has not answered, or has died: it may be either build.
func (c *Client) Upgrade(ctx context.Context, binary string) (build string, err error) {
	if c.peer < 2 {
		return "", fault.New(fault.Unsupported, "the monitor speaks protocol %d and cannot be replaced in place", c.peer)
	}
	a, err := c.call(ctx, &call{}, wire.Request{Upgrade: &wire.Upgrade{Binary: binary}})
	if err != nil {
		return "", err
	}
	if a.reply.Hello == nil {
		return "", fault.New(fault.Unsupported, "upgrade to %s: the monitor's answer is empty", binary)
	}
	return a.reply.Hello.Build, nil
}

// Quit ends the monitor. Errors: Busy if it keeps a running process.
func (c *Client) Quit(ctx context.Context) error {
	return c.simple(ctx, "end the monitor", wire.Request{Quit: &wire.Quit{}})
}

func (c *Client) simple(ctx context.Context, what string, req wire.Request, files ...*os.File) error {
	_, err := c.call(ctx, &call{}, req, files...)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

type result struct {
	answer
	list []answer
}

// call sends one request and waits for its answer. If ctx ends first the answer is thrown away when it comes: a start
// may then have happened, and List shows it.
func (c *Client) call(ctx context.Context, k *call, req wire.Request, files ...*os.File) (result, error) {
	k.replies = make(chan answer, 1)
	c.mu.Lock()
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		return result{}, err
	}
	c.seq++
	req.Seq = c.seq
	c.calls[req.Seq] = k
	c.mu.Unlock()
	if err := c.conn.Send(req, files...); err != nil {
		c.mu.Lock()
		delete(c.calls, req.Seq)
		c.mu.Unlock()
		if fault.Of(err) == fault.Unknown {
			err = fault.As(fault.Temporary, err)
		}
		return result{}, err
	}
	select {
	case a := <-k.replies:
		if a.err == nil && a.reply.Error != nil {
			closeFiles(a.files)
			a.err = a.reply.Error.Err()
		}
		return result{a, k.all}, a.err
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.calls, req.Seq)
		c.mu.Unlock()
		select { // it may have come meanwhile
		case a := <-k.replies:
			closeFiles(a.files)
		default:
		}
		return result{}, fault.New(fault.Temporary, "no answer from the monitor: %w", ctx.Err())
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func (c *Client) readLoop() {
	var err error
	for err == nil {
		var r wire.Reply
		var fds []int
		if fds, err = c.conn.Recv(&r); err == nil {
			c.dispatch(r, fds)
		}
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("it closed the connection")
	}
	err = fault.New(fault.Temporary, "the monitor is gone: %w", err)
	_ = c.conn.Close()
	c.mu.Lock()
	c.err = err
	calls := c.calls
	c.calls = map[uint64]*call{}
	c.mu.Unlock()
	for _, k := range calls {
		for _, a := range k.all {
			closeFiles(a.files)
		}
		k.replies <- answer{err: err}
	}
	close(c.done)
}

func (c *Client) dispatch(r wire.Reply, fds []int) {
	if r.Seq == 0 {
		wire.CloseAll(fds)
		c.event(r)
		return
	}
	c.mu.Lock()
	k := c.calls[r.Seq]
	more := k != nil && len(r.List) > 0
	if k != nil && !more {
		delete(c.calls, r.Seq)
	}
	c.mu.Unlock()
	if k == nil {
		wire.CloseAll(fds)
		return
	}
	a := answer{reply: r}
	var info wire.Process
	switch {
	case r.Started != nil:
		info = *r.Started
	case more:
		info = r.List[0]
	}
	if k.polled {
		a.files = wire.Polled(fds, info.Files)
	} else if len(fds) > 0 {
		if a.files, a.err = wire.Kept(fds, info.Files); a.err == nil {
			c.keepStdin(info.ID, info.Files, a.files)
		}
	}
	if more {
		k.all = append(k.all, a)
		return
	}
	k.replies <- a
}

// keepStdin remembers which file is id's stdin pipe.
func (c *Client) keepStdin(id string, names []string, files []*os.File) {
	for i, name := range names {
		if name == "stdin" && i < len(files) {
			c.mu.Lock()
			c.stdin[id] = files[i]
			c.mu.Unlock()
		}
	}
}

// event is what the monitor says by itself.
func (c *Client) event(r wire.Reply) {
	if r.StdinClosed != "" {
		c.mu.Lock()
		f := c.stdin[r.StdinClosed]
		delete(c.stdin, r.StdinClosed)
		c.mu.Unlock()
		if f != nil {
			f.Close()
		}
	}
	if r.Exit == nil {
		return
	}
	c.mu.Lock()
	c.exits = append(c.exits, *r.Exit)
	c.mu.Unlock()
	select {
	case c.notify <- struct{}{}:
	default:
	}
}

// exitLoop feeds Exits from a list that may grow, so that a busy reader never stops the connection.
func (c *Client) exitLoop() {
	for {
		select {
		case <-c.notify:
		case <-c.done:
			return
		}
		for {
			c.mu.Lock()
			list := c.exits
			c.exits = nil
			c.mu.Unlock()
			if len(list) == 0 {
				break
			}
			for _, e := range list {
				select {
				case c.out <- e:
				case <-c.done:
					return // a new connection repeats what was not forgotten
				}
			}
		}
	}
}
