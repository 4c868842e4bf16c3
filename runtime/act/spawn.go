package act

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/client"
)

const (
	monitorStart = 10 * time.Second     // how long a new monitor may take to answer
	monitorPoll  = 2 * time.Millisecond // how often we look whether it does
	renewLimit   = 30 * time.Second     // how long one may take to become another build
)

// renew has a running monitor become the build that lies beside ours, if it is another. That it cannot is no reason not
// to serve: every build speaks with the one before. What the old one was is kept, should the new one not live.
func (k *Keeper) renew(ctx context.Context, conn *client.Client) {
	if k.binary == "" || k.isUnfit() {
		return
	}
	old, err := os.Open(fmt.Sprintf("/proc/%d/exe", conn.Pid()))
	if err != nil {
		slog.Warn("the monitor's build is not known", "pid", conn.Pid(), "error", err)
		return
	}
	same, err := sameContent(old, k.binary)
	if same || err != nil {
		old.Close()
		if err != nil {
			slog.Warn("the monitor's build is not compared", "pid", conn.Pid(), "error", err)
		}
		return
	}
	if k.spare != nil {
		k.spare.Close()
	}
	k.spare = old
	ctx, stop := context.WithTimeout(ctx, renewLimit)
	defer stop()
	build, err := conn.Upgrade(ctx, k.binary)
	switch {
	case err == nil:
		slog.Info("monitor upgraded in place", "pid", conn.Pid(), "build", build)
	case ctx.Err() != nil && conn.Err() == nil:
		// It neither answers nor ends; containers do not need it, and it needs to be rebuilt.
		slog.Error("monitor does not answer after its upgrade, killing it", "pid", conn.Pid(), "error", err)
		if err := unix.Kill(conn.Pid(), unix.SIGKILL); err != nil {
			slog.Error("monitor not killed", "pid", conn.Pid(), "error", err)
		}
		<-conn.Done()
	default:
		slog.Error("monitor not upgraded", "pid", conn.Pid(), "error", err)
	}
	if err != nil && !fault.Is(err, fault.Busy) {
		k.unfit, _ = os.Stat(k.binary)
	}
}

// isUnfit reports whether the binary is the one that failed, unchanged.
func (k *Keeper) isUnfit() bool {
	now, err := os.Stat(k.binary)
	return err == nil && k.unfit != nil && os.SameFile(now, k.unfit) && now.ModTime().Equal(k.unfit.ModTime()) && now.Size() == k.unfit.Size()
}

// sameContent compares an open file with the one at path. Builds are compared by their bytes: a revision's name says
// nothing about what was built from a changed tree.
func sameContent(a *os.File, path string) (bool, error) {
	b, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer b.Close()
	sa, err := a.Stat()
	if err != nil {
		return false, err
	}
	sb, err := b.Stat()
	if err != nil {
		return false, err
	}
	if os.SameFile(sa, sb) || sa.Size() != sb.Size() {
		return os.SameFile(sa, sb), nil
	}
	ours, theirs := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(a, ours)
		m, _ := io.ReadFull(b, theirs)
		if n != m || !bytes.Equal(ours[:n], theirs[:m]) {
			return false, nil
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// spawn starts a monitor; should the build at hand not live, the one before it.
func (k *Keeper) spawn(ctx context.Context) (*client.Client, error) {
	if k.binary == "" {
		return nil, fault.New(fault.Temporary, "monitor at %s does not answer", k.socket)
	}
	conn, err := k.spawnBinary(ctx, k.binary)
	if err == nil || k.spare == nil || ctx.Err() != nil {
		return conn, err
	}
	slog.Error("the new monitor does not live, back to the one before", "error", err)
	return k.spawnBinary(ctx, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), k.spare.Fd()))
}

// spawnBinary starts a monitor in a session of its own, so that neither our end nor our terminal's ends it.
func (k *Keeper) spawnBinary(ctx context.Context, binary string) (*client.Client, error) {
	log, err := os.OpenFile(k.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fault.New(fault.Denied, "monitor's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(binary, "--socket", k.socket, "--state", k.state)
	cmd.Args[0] = k.binary
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fault.Hint(fault.New(fault.Unsupported, "start the monitor: %w", err), "worknode-monitor lies beside worknode")
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // reaps; outlives us if the monitor does
	ctx, stop := context.WithTimeout(ctx, monitorStart)
	defer stop()
	for {
		conn, err := client.Dial(ctx, k.socket)
		if err == nil {
			slog.Info("monitor started", "pid", cmd.Process.Pid)
			return conn, nil
		}
		select {
		case werr := <-ended:
			return nil, fault.Hint(fault.New(fault.Temporary, "monitor ended at once: %v", werr), "its words are in %s", k.log)
		case <-ctx.Done():
			return nil, fault.New(fault.Temporary, "monitor %s does not answer: %w", k.socket, err)
		case <-time.After(monitorPoll):
		}
	}
}
