package monitor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/pidfd"
	"worknode/monitor/birth"
	"worknode/monitor/hook"
	"worknode/monitor/wire"
)

// borrow has another OCI runtime make the process: its command gets the pipes, and what it leaves behind falls to us as
// the nearest subreaper. On failure the container may exist for that runtime: whoever asked has it deleted.
func (l *launch) borrow() error {
	f := l.req.Foreign
	console := -1
	if l.req.Terminal {
		listen, err := birth.Listen(filepath.Split(f.Console))
		if err != nil {
			return fmt.Errorf("console socket: %w", err)
		}
		defer listen.Close()
		defer os.Remove(f.Console)
		console = int(rawFd(listen))
	}
	if err := l.clone(); err != nil {
		return err
	}
	if err := l.finished(f); err != nil {
		return blame(f, l.req.Init.Args, err)
	}
	if err := l.found(f); err != nil {
		return err
	}
	err := l.takeConsole(console)
	if err == nil && len(f.Start) > 0 {
		err = hook.Runner{Reap: l.m.reaped, Born: ordinary}.Command(wire.Hook{Path: f.Start[0], Args: f.Start, Env: l.req.Init.Env, Timeout: f.Limit})
		if err != nil {
			err = blame(f, f.Start, err)
		}
	}
	if err != nil && l.proc.pidfd != nil {
		_ = pidfd.Signal(l.proc.pidfd, unix.SIGKILL)
	}
	l.proc.info.Started = time.Now()
	return err
}

// finished waits for the end of the runtime's command, which until now is taken for the process.
func (l *launch) finished(f *wire.Foreign) error {
	command, pid := l.proc.pidfd, l.proc.info.Pid
	l.proc.pidfd, l.proc.info.Pid = nil, 0
	defer command.Close()
	st, err := hook.Runner{Reap: l.m.reaped}.Wait(pid, int(rawFd(command)), f.Limit)
	switch {
	case err != nil:
		return err
	case st.Signaled():
		return fault.New(fault.Unknown, "it was ended by signal %d (%s)", st.Signal(), st.Signal())
	case st.ExitStatus() != 0:
		return fault.New(fault.Unknown, "exit status %d", st.ExitStatus())
	}
	return nil
}

// found takes the process whose number the command has left.
func (l *launch) found(f *wire.Foreign) error {
	text, err := os.ReadFile(f.PidFile)
	if err != nil {
		return fmt.Errorf("process of %s: %w", l.req.ID, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return fault.New(fault.Invalid, "process of %s: %s holds %q, not its number", l.req.ID, f.PidFile, text)
	}
	l.proc.info.Pid = pid
	l.proc.info.StartTime, _ = pidfd.StartTime(pid) // a zombie still has one
	if l.proc.pidfd, err = pidfd.Open(pid); err == nil {
		return nil
	}
	// A short command may have ended, and been reaped, before we knew of it: its end is kept for register.
	l.m.reap()
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if _, ended := l.m.early[pid]; ended {
		l.proc.pidfd = nil
		return nil
	}
	return err
}

// takeConsole receives the master of the terminal; the command has connected and sent it before it ended.
func (l *launch) takeConsole(listen int) error {
	if listen < 0 {
		return nil
	}
	if err := unix.SetNonblock(listen, true); err != nil {
		return err
	}
	conn, _, err := unix.Accept4(listen, unix.SOCK_CLOEXEC)
	if err != nil {
		return fault.New(fault.Invalid, "the runtime sent no terminal: %w", err)
	}
	defer unix.Close(conn)
	oob, word := make([]byte, unix.CmsgSpace(4)), make([]byte, 4096)
	_, n, _, _, err := unix.Recvmsg(conn, word, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return fmt.Errorf("terminal from the runtime: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return fault.New(fault.Invalid, "terminal from the runtime: %d messages, want one: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return fmt.Errorf("terminal from the runtime: %w", err)
	}
	return l.terminal(fds)
}

// blame says which command went wrong, and what the runtime wrote about it.
func blame(f *wire.Foreign, command []string, err error) error {
	line := strings.Join(command[:min(len(command), 1)], " ")
	if said := lastError(f.Log); said != "" {
		return fault.As(kindOfWords(said, fault.Of(err)), fmt.Errorf("%s: %w: %s", line, err, said))
	}
	return fmt.Errorf("%s: %w", line, err)
}

// kindOfWords knows the words that users, and the kubelet, tell a missing program by.
func kindOfWords(said string, kind fault.Kind) fault.Kind {
	switch {
	case strings.Contains(said, "executable file not found"), strings.Contains(said, "no such file or directory"):
		return fault.NotFound
	case strings.Contains(said, "permission denied"):
		return fault.Denied
	}
	return kind
}

// maxLog bounds what is read of a log that another program has written.
const maxLog = 1 << 20

// lastError reads a log as runc and those like it write it.
func lastError(path string) (last string) {
	info, err := os.Stat(path)
	if err != nil || info.Size() > maxLog {
		return ""
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg != "" && entry.Level != "debug" && entry.Level != "info" {
			last = entry.Msg
		}
	}
	return last
}
