package act

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"worknode/fault"
	"worknode/monitor/client"
	"worknode/monitor/wire"
	"worknode/step"
)

const (
	callLimit = 30 * time.Second      // any single request to the monitor
	beginPoll = 20 * time.Millisecond // how often we look whether a start of an earlier life has ended
)

// Keeper is the connection to the monitor, and the second holder of everything the monitor holds: when the monitor
// dies it starts a new one and gives it back every process with its pipes, terminal and pidfd.
type Keeper struct {
	socket, binary, state, log string

	mu      sync.Mutex
	conn    *client.Client // nil while there is no monitor
	back    chan struct{}  // closed when conn is set
	kept    map[string]client.Kept
	waiters map[string]chan wire.Exit
	warned  sync.Map    // warnings already logged
	early   []wire.Exit // exits learnt from lists, before anybody could take them
	spare   *os.File    // the monitor's binary before the last upgrade; nil without one
	unfit   os.FileInfo // the binary that a monitor could not become: not tried again
}

// KeeperConfig says where the monitor is and how to start one.
type KeeperConfig struct {
	Socket string // unix socket of the monitor
	Binary string // worknode-monitor; empty: never start one
	State  string // the monitor's records, on tmpfs
	Log    string // file that a started monitor writes to
}

// OpenKeeper connects to the running monitor, or starts one, and takes duplicates of what it holds.
func OpenKeeper(ctx context.Context, c KeeperConfig) (*Keeper, error) {
	k := &Keeper{socket: c.Socket, binary: c.Binary, state: c.State, log: c.Log,
		back: make(chan struct{}), kept: map[string]client.Kept{}, waiters: map[string]chan wire.Exit{}}
	return k, k.connect(ctx)
}

// Run passes exits on and replaces a monitor that dies, until ctx ends. exit is called for one exit at a time and must
// not block; an exit is repeated until Forget.
func (k *Keeper) Run(ctx context.Context, exit func(wire.Exit)) {
	for ctx.Err() == nil {
		k.mu.Lock()
		conn, early := k.conn, k.early
		k.early = nil
		k.mu.Unlock()
		for _, e := range early {
			k.deliver(e, exit)
		}
		if conn == nil {
			if err := k.connect(ctx); err != nil && ctx.Err() == nil {
				slog.Error("no monitor, containers run on but none can start", "error", err)
				wait(ctx, time.Second)
			}
			continue
		}
		k.forward(ctx, conn, exit)
		if ctx.Err() != nil {
			return // the connection stays for who ends us
		}
		slog.Warn("monitor is gone, starting a new one")
		k.mu.Lock()
		if k.conn == conn {
			k.conn, k.back = nil, make(chan struct{})
		}
		k.mu.Unlock()
	}
}

// forward delivers exits until the connection breaks.
func (k *Keeper) forward(ctx context.Context, conn *client.Client, exit func(wire.Exit)) {
	for {
		select {
		case e, ok := <-conn.Exits():
			if !ok {
				return
			}
			k.deliver(e, exit)
		case <-conn.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

func (k *Keeper) deliver(e wire.Exit, exit func(wire.Exit)) {
	k.mu.Lock()
	w := k.waiters[e.ID]
	delete(k.waiters, e.ID)
	k.mu.Unlock()
	if w != nil {
		w <- e
		return
	}
	exit(e)
}

// connect finds or starts a monitor and hands over what the old one kept.
func (k *Keeper) connect(ctx context.Context) error {
	conn, err := client.Dial(ctx, k.socket)
	if err != nil {
		if conn, err = k.spawn(ctx); err != nil {
			return err
		}
	}
	if err := k.handOver(ctx, conn); err != nil {
		_ = conn.Close()
		return err
	}
	k.renew(ctx, conn)
	if err := conn.Err(); err != nil { // it died of its upgrade
		return k.connect(ctx)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conn = conn
	close(k.back)
	return nil
}

// handOver gives a monitor what its predecessor kept, then takes duplicates of what it has that we do not know.
// The order matters: output of a process that has exited may still wait in pipes that only we hold.
func (k *Keeper) handOver(ctx context.Context, conn *client.Client) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	adopted := map[string]bool{}
	for id, p := range k.kept {
		err := conn.Adopt(ctx, p.Process, p.Files)
		switch {
		case err == nil:
			adopted[id] = true
		case !fault.Is(err, fault.Exists): // Exists: the same monitor, only the connection broke
			slog.Error("monitor did not adopt", "id", id, "pid", p.Pid, "error", err)
			k.early = append(k.early, wire.Exit{ID: id, Code: 255, Unknown: true, At: time.Now()})
		}
	}
	list, err := conn.List(ctx)
	if err != nil {
		return fmt.Errorf("monitor's list: %w", err)
	}
	for _, p := range list {
		if adopted[p.ID] {
			closeAll(p.Files)
			continue
		}
		closeAll(k.kept[p.ID].Files)
		k.kept[p.ID] = p
		if p.Exit != nil {
			k.early = append(k.early, *p.Exit)
		}
	}
	return nil
}

// client waits for a connected monitor.
func (k *Keeper) client(ctx context.Context) (*client.Client, error) {
	for {
		k.mu.Lock()
		conn, back := k.conn, k.back
		k.mu.Unlock()
		if conn != nil {
			return conn, nil
		}
		select {
		case <-back:
		case <-ctx.Done():
			return nil, fault.New(fault.Temporary, "no monitor: %w", ctx.Err())
		}
	}
}

// Up reports whether a monitor is connected.
func (k *Keeper) Up() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.conn != nil
}

// Start has the monitor clone a process. For an exec with a terminal the pty's master is returned and the caller's to
// close; all else is kept here.
// Errors: those of the monitor, with the stage in the text; after Temporary a process may exist all the same.
func (k *Keeper) Start(ctx context.Context, s wire.Start, stdio []*os.File) (wire.Process, *os.File, error) {
	conn, err := k.client(ctx)
	if err != nil {
		return wire.Process{}, nil, err
	}
	ctx, stop := context.WithTimeout(ctx, callLimit+s.Hooks.Limit())
	defer stop()
	step.At("about to start a process")
	p, files, err := conn.Start(ctx, s, stdio)
	if fault.Is(err, fault.Exists) {
		p, files, err = begun(ctx, conn, s.ID)
	}
	step.At("process started")
	if err != nil {
		closeAll(files)
		return p, nil, err
	}
	for _, w := range p.Warnings {
		k.warn(w)
	}
	var pty *os.File
	if i := slices.Index(p.Files, "pty"); s.Join != "" && i >= 0 && i < len(files) {
		pty = files[i]
		p.Files = slices.Delete(slices.Clone(p.Files), i, i+1)
		files = slices.Delete(slices.Clone(files), i, i+1)
	}
	k.mu.Lock()
	k.kept[p.ID] = client.Kept{Process: p, Files: files}
	k.mu.Unlock()
	return p, pty, nil
}

// begun waits for a start that an earlier life of ours asked for and did not see the end of. There are never two
// processes of one id.
func begun(ctx context.Context, conn *client.Client, id string) (wire.Process, []*os.File, error) {
	for {
		list, err := conn.List(ctx)
		if err != nil {
			return wire.Process{}, nil, fmt.Errorf("monitor's list: %w", err)
		}
		var found *client.Kept
		for i, p := range list {
			if p.ID == id {
				found = &list[i]
			} else {
				closeAll(p.Files)
			}
		}
		if found != nil {
			return found.Process, found.Files, nil
		}
		wait(ctx, beginPoll)
		if ctx.Err() != nil {
			return wire.Process{}, nil, fault.New(fault.Temporary, "process %s is being started, as an earlier call asked: %w", id, ctx.Err())
		}
	}
}

// warn logs what init had to leave out, once: it is the same for every container of this node.
func (k *Keeper) warn(text string) {
	if _, told := k.warned.LoadOrStore(text, true); !told {
		slog.Warn("this node cannot give containers all they ask for", "warning", text)
	}
}

// Await returns where the exit of a process will appear, instead of at Run's callback. Call it before Start.
func (k *Keeper) Await(id string) <-chan wire.Exit {
	w := make(chan wire.Exit, 1)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.waiters[id] = w
	return w
}

// Unwait takes Await back.
func (k *Keeper) Unwait(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.waiters, id)
}

// Keep gives the monitor a process that it does not know; files are named by p.Files and become the keeper's.
func (k *Keeper) Keep(ctx context.Context, p wire.Process, files []*os.File) error {
	conn, err := k.client(ctx)
	if err != nil {
		return err
	}
	if err := conn.Adopt(ctx, p, files); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept[p.ID] = client.Kept{Process: p, Files: files}
	return nil
}

// Forget drops an exited process here and in the monitor. Repeat: safe.
func (k *Keeper) Forget(ctx context.Context, id string) error {
	k.mu.Lock()
	closeAll(k.kept[id].Files)
	delete(k.kept, id)
	conn := k.conn
	k.mu.Unlock()
	if conn == nil {
		return nil // the next monitor will not hear of it
	}
	step.At("about to forget a process")
	err := conn.Forget(ctx, id)
	step.At("process forgotten")
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// Knows reports whether a process is kept, running or exited.
func (k *Keeper) Knows(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.kept[id]
	return ok
}

// Known returns all processes kept, running or exited.
func (k *Keeper) Known() []wire.Process {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]wire.Process, 0, len(k.kept))
	for _, p := range k.kept {
		out = append(out, p.Process)
	}
	return out
}

// Signal sends a signal to a process, or with all to everything that belongs to it.
func (k *Keeper) Signal(ctx context.Context, id string, sig int, all bool) error {
	step.At("about to signal")
	defer step.At("signalled")
	return k.call(ctx, func(ctx context.Context, c *client.Client) error { return c.Signal(ctx, id, sig, all) })
}

// Reopen makes the log copier of a container open its file anew.
func (k *Keeper) Reopen(ctx context.Context, id string) error {
	return k.call(ctx, func(ctx context.Context, c *client.Client) error { return c.Reopen(ctx, id) })
}

// Attach connects files to a container's stdio; the monitor gets duplicates.
func (k *Keeper) Attach(ctx context.Context, a wire.Attach, files []*os.File) error {
	return k.call(ctx, func(ctx context.Context, c *client.Client) error { return c.Attach(ctx, a, files) })
}

// Resize sets a terminal's size in characters.
func (k *Keeper) Resize(ctx context.Context, id string, width, height uint16) error {
	return k.call(ctx, func(ctx context.Context, c *client.Client) error { return c.Resize(ctx, id, width, height) })
}

// SetSize sets the size of an exec's terminal by its master, in characters.
func SetSize(master *os.File, width, height uint16) error {
	return client.SetSize(master, width, height)
}

// Quit ends the monitor if it keeps no running process.
func (k *Keeper) Quit(ctx context.Context) error {
	return k.call(ctx, func(ctx context.Context, c *client.Client) error { return c.Quit(ctx) })
}

func (k *Keeper) call(ctx context.Context, fn func(context.Context, *client.Client) error) error {
	conn, err := k.client(ctx)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, callLimit)
	defer stop()
	return fn(ctx, conn)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
