package runtime

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/kernel/netns"
	"worknode/monitor/wire"
	"worknode/runtime/act"
	"worknode/runtime/plan"
	"worknode/runtime/state"
	"worknode/runtime/stream"
)

const (
	// outputLimit is what ExecSync returns of each of stdout and stderr; the rest is read and dropped, so that a command
	// can neither fill our memory nor hang (the lesson of CVE-2022-1708).
	outputLimit = 16 << 20
	// drainLimit is how long we read on after an exec ended, when something it left behind holds its output open.
	drainLimit = 10 * time.Second
	dialLimit  = 10 * time.Second
)

// command is one process in a running container.
type command struct {
	id        string
	container string
	pty       *os.File // with a terminal; ours to close
	exit      <-chan wire.Exit
}

// startExec clones a process into a running container; stdio is closed here, with or without success.
func (l *loop) startExec(ctx context.Context, id string, args []string, terminal bool, stdio []*os.File) (*command, error) {
	defer func() {
		for _, f := range stdio {
			f.Close()
		}
	}()
	s, c, err := l.running(id)
	if err != nil {
		return nil, err
	}
	if len(args) == 0 {
		return nil, fault.New(fault.Invalid, "container %s: the command is empty", c.ID)
	}
	made, err := l.identity(s, c)
	if err != nil {
		return nil, err
	}
	execID := "exec-" + newID()[:24]
	start, remove, err := l.execStart(s, execID, c, made, args, terminal)
	defer remove()
	if err != nil {
		return nil, err
	}
	exit := l.keeper.Await(execID)
	_, pty, err := l.keeper.Start(ctx, start, stdio)
	if err != nil {
		l.keeper.Unwait(execID)
		return nil, err
	}
	return &command{id: execID, container: c.ID, pty: pty, exit: exit}, nil
}

// identity plans the container again for what an exec takes over from it; mounts and devices do not matter then.
func (l *loop) identity(s *state.Sandbox, c *state.Container) (plan.Made, error) {
	return plan.Container(plan.Input{Sandbox: s, Config: c.Config, Image: c.Image, User: c.User, Host: l.hands.Host, Cgroup: c.Cgroup, Edits: c.Edits})
}

// forget drops the monitor's record of an ended exec, beside whoever waits for the result.
func (l *loop) forget(id string) {
	l.tasks.Go("forget "+id, func(ctx context.Context) {
		if err := l.keeper.Forget(ctx, id); err != nil {
			slog.Debug("monitor did not forget", "id", id, "error", err)
		}
	})
}

// end kills the command's whole tree and takes its exit. Its context is fresh, as the old one is why we are here.
func (l *loop) end(cmd *command) {
	if err := l.keeper.Signal(l.tasks.Context(), cmd.id, int(unix.SIGKILL), true); err != nil && !fault.Is(err, fault.NotFound) {
		slog.Warn("command not killed", "id", cmd.id, "container", cmd.container, "error", err)
	}
	select {
	case <-cmd.exit:
	case <-time.After(drainLimit):
		l.keeper.Unwait(cmd.id)
	}
	l.forget(cmd.id)
}

// ExecSync runs a command to its end. timeout zero means none.
// Errors: Temporary wrapping context.DeadlineExceeded after timeout, with the command and its children killed; what init
// met if the command cannot be executed.
func (l *loop) ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (stdout, stderr []byte, code int, err error) {
	if timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, timeout)
		defer stop()
	}
	outs, theirs, err := outputs()
	if err != nil {
		return nil, nil, 0, err
	}
	cmd, err := l.startExec(ctx, id, args, false, theirs)
	if err != nil {
		outs[0].Close()
		outs[1].Close()
		return nil, nil, 0, err
	}
	var texts [2][]byte
	var reading sync.WaitGroup
	for i, f := range outs {
		reading.Go(func() { texts[i] = readCapped(f) })
	}
	select {
	case e := <-cmd.exit:
		code = e.Code
		l.forget(cmd.id)
		late := time.AfterFunc(drainLimit, func() { closeBoth(outs) })
		reading.Wait()
		late.Stop()
	case <-ctx.Done():
		err = fault.New(fault.Temporary, "command %q in container %s: %w", args, id, ctx.Err())
		l.end(cmd)
		closeBoth(outs)
		reading.Wait()
	}
	closeBoth(outs)
	return texts[0], texts[1], code, err
}

func closeBoth(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// outputs makes stdout and stderr pipes and a silent stdin; theirs is in the order the monitor takes.
func outputs() (ours, theirs []*os.File, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	out, theirOut, err := act.PipeOut()
	if err != nil {
		null.Close()
		return nil, nil, err
	}
	errs, theirErr, err := act.PipeOut()
	if err != nil {
		closeBoth([]*os.File{null, out, theirOut})
		return nil, nil, err
	}
	return []*os.File{out, errs}, []*os.File{null, theirOut, theirErr}, nil
}

// readCapped reads to the end and keeps the first outputLimit bytes.
func readCapped(f *os.File) []byte {
	text, _ := io.ReadAll(io.LimitReader(f, outputLimit))
	io.Copy(io.Discard, f)
	return text
}

// OpenExec starts a command for a streaming client.
func (l *loop) OpenExec(ctx context.Context, id string, args []string, want stream.Want) (stream.Session, error) {
	var ours [3]*os.File // stdin, stdout, stderr
	var theirs []*os.File
	if !want.TTY {
		var err error
		if ours, theirs, err = pipes(want); err != nil {
			return stream.Session{}, err
		}
	}
	cmd, err := l.startExec(ctx, id, args, want.TTY, theirs)
	if err != nil {
		closeSome(ours[:])
		return stream.Session{}, err
	}
	session := stream.Session{
		Wait: func(ctx context.Context) (int, error) {
			select {
			case e := <-cmd.exit:
				l.forget(cmd.id)
				return e.Code, nil
			case <-ctx.Done():
				l.end(cmd)
				return 0, ctx.Err()
			}
		},
	}
	if want.TTY {
		session.Stdout, session.Terminal = cmd.pty, cmd.pty
		session.Resize = func(w, h uint16) error { return act.SetSize(cmd.pty, w, h) }
		return session, nil
	}
	session.Fill(ours[0], ours[1], ours[2])
	return session, nil
}

// OpenAttach connects a streaming client to a container's own stdio.
func (l *loop) OpenAttach(ctx context.Context, id string, want stream.Want) (stream.Session, error) {
	_, c, err := l.running(id)
	if err != nil {
		return stream.Session{}, err
	}
	life := l.life(c.ID)
	if life == nil {
		return stream.Session{}, fault.New(fault.Invalid, "container %s has exited", c.ID)
	}
	want.TTY = c.Config.GetTty()
	want.Stdin = want.Stdin && c.Config.GetStdin()
	want.Stderr = want.Stderr && !want.TTY
	ours, all, err := pipes(want)
	if err != nil {
		return stream.Session{}, err
	}
	var theirs []*os.File
	for i, wanted := range []bool{want.Stdin, want.Stdout, want.Stderr} {
		if wanted {
			theirs = append(theirs, all[i])
		}
	}
	err = l.keeper.Attach(ctx, wire.Attach{ID: c.ID, Stdin: want.Stdin, Stdout: want.Stdout, Stderr: want.Stderr}, theirs)
	closeSome(all)
	if err != nil {
		closeSome(ours[:])
		return stream.Session{}, err
	}
	session := stream.Session{
		Resize: func(w, h uint16) error { return l.keeper.Resize(ctx, c.ID, w, h) },
		Wait: func(ctx context.Context) (int, error) {
			select {
			case <-life.done:
			case <-ctx.Done():
			}
			return 0, ctx.Err()
		},
	}
	session.Fill(ours[0], ours[1], ours[2])
	return session, nil
}

// pipes makes stdin, stdout and stderr; what is not wanted is /dev/null on their side and nil on ours.
func pipes(want stream.Want) (ours [3]*os.File, theirs []*os.File, err error) {
	for i, wanted := range []bool{want.Stdin, want.Stdout, want.Stderr} {
		var their *os.File
		switch {
		case !wanted:
			their, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
		case i == 0:
			ours[0], their, err = act.PipeIn()
		default:
			ours[i], their, err = act.PipeOut()
		}
		if err != nil {
			closeSome(ours[:])
			closeSome(theirs)
			return ours, nil, err
		}
		theirs = append(theirs, their)
	}
	return ours, theirs, nil
}

func closeSome(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// Dial connects to a port as the pod itself would: loopback in its network namespace, IPv4 then IPv6, one after the
// other on one thread, as a parallel dialer would leave the namespace.
func (l *loop) Dial(_ context.Context, sandbox string, port int32) (net.Conn, error) {
	s, err := l.store.Sandbox(sandbox)
	if err != nil {
		return nil, err
	}
	if s.State != state.Ready {
		return nil, fault.New(fault.Invalid, "sandbox %s is stopped", s.ID)
	}
	if port < 1 || port > 65535 {
		return nil, fault.New(fault.Invalid, "port %d is out of range", port)
	}
	var conn net.Conn
	dial := func() (err error) {
		for _, host := range []string{"127.0.0.1", "::1"} {
			var c net.Conn
			if c, err = net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))), dialLimit); err == nil {
				conn = c
				return nil
			}
		}
		return err
	}
	if s.HostNetwork {
		err = dial()
	} else {
		err = netns.Do(l.hands.NetPath(s), dial)
	}
	if err != nil {
		return nil, fault.New(fault.Temporary, "sandbox %s, port %d: %w", s.ID, port, err)
	}
	return conn, nil
}

// Exec hands out a URL for a streaming client; the container is checked now, so that a mistake is not left to HTTP.
func (l *loop) Exec(r *cri.ExecRequest) (*cri.ExecResponse, error) {
	if _, _, err := l.running(r.GetContainerId()); err != nil {
		return nil, err
	}
	return l.stream.Exec(r)
}

// Attach is like Exec.
func (l *loop) Attach(r *cri.AttachRequest) (*cri.AttachResponse, error) {
	if _, _, err := l.running(r.GetContainerId()); err != nil {
		return nil, err
	}
	return l.stream.Attach(r)
}

// PortForward is like Exec, for a sandbox.
func (l *loop) PortForward(r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	if _, err := l.store.Sandbox(r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return l.stream.PortForward(r)
}
