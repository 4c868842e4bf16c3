package monitor

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/wire"
	"worknode/version"
)

// An upgrade executes another build in the monitor's place. execve keeps the pid, so all children stay ours, and every
// descriptor that is not close-on-exec; what else the next build must know lies in a memory file (handover.go).
//
// Nothing of it can be lost on the way, because each stage can go back:
//
//  1. the binary is run beside us and asked what it is: one that does not run, or cannot read our state, is refused
//  2. both gates are shut, requests first: nothing is half done. What does not come to rest in time: the old build goes on
//  3. execve. If the kernel refuses: the old build goes on
//  4. the new build reads the state. If it cannot: it executes the old one again, from a descriptor
//  5. it dies even so: that is a killed monitor, whose containers the runtime gives to another (act/keeper.go)

// StateVersion is that of the handed-over state. A build takes over from its own version and the one before; fields are
// only ever added.
const StateVersion = 1

// Limits of an upgrade.
const (
	aboutLimit = 10 * time.Second       // the new binary says what it is
	callsLimit = 10 * time.Second       // requests under way end; meanwhile only requests wait
	stepsLimit = 500 * time.Millisecond // a look at a pipe ends, disk write included; meanwhile all output waits
	flushLimit = time.Second            // clients read what was answered; who does not is disconnected
)

// Arguments of the monitor's binary that are not for people.
const (
	AboutArg = "about" // print About and end
	stateArg = "--handover-state"
	backArg  = "--handover-back"
	whyArg   = "--handover-refused"
)

// Handover is what a build tells the one that it executes in its place.
type Handover struct {
	State int    // descriptor of the state; 0: there is none, this is an ordinary start
	Back  int    // descriptor of the binary to execute if that cannot be read
	Why   string // why the build between refused, if this is the way back
}

// About is what a binary says of itself.
type About struct {
	Build    string
	Protocol int
	State    int
}

// Self is this build's answer to AboutArg.
func Self() About { return About{version.Build, wire.Version, StateVersion} }

// upgrade replaces this build by another. It returns only if that did not happen; the next build answers seq else.
// Errors: Invalid, Unsupported for the binary; Busy if something does not come to rest.
func (m *Monitor) upgrade(binary string, from *peer, seq uint64) error {
	if !filepath.IsAbs(binary) {
		return fault.New(fault.Invalid, "upgrade: binary %q is not an absolute path", binary)
	}
	if !m.upgrading.TryLock() {
		return fault.New(fault.Busy, "upgrade to %s: another one is under way", binary)
	}
	defer m.upgrading.Unlock()
	about, err := ask(binary)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if about.State != StateVersion && about.State != StateVersion+1 {
		return fault.Hint(fault.New(fault.Unsupported, "upgrade: build %s in %s reads state %d, ours is %d", about.Build, binary, about.State, StateVersion),
			"go by a build between")
	}
	if !m.calls.close(callsLimit) {
		return fault.Hint(fault.New(fault.Busy, "upgrade: a request has been under way for %v", callsLimit), "a container hangs in its start; try again later")
	}
	defer m.calls.open()
	if !m.steps.close(stepsLimit) {
		return fault.Hint(fault.New(fault.Busy, "upgrade: a log takes longer than %v to write", stepsLimit), "its disk is slow or full; try again later")
	}
	defer m.steps.open()
	m.flush()
	slog.Info("another build takes over", "build", about.Build, "binary", binary)
	err = m.become(binary, from, seq)
	slog.Error("this build goes on", "build", version.Build, "error", err)
	return fmt.Errorf("upgrade: %w", err)
}

// ask runs a binary and has it say what it is. It is reaped as a stranger.
func ask(binary string) (About, error) {
	var about About
	r, w, err := pipe("about", true)
	if err != nil {
		return about, err
	}
	defer r.Close()
	_ = r.SetReadDeadline(time.Now().Add(aboutLimit))
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		w.Close()
		return about, err
	}
	pid, err := syscall.ForkExec(binary, []string{binary, AboutArg}, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{rawFd(null), rawFd(w), rawFd(null)}})
	w.Close()
	null.Close()
	if err != nil {
		return about, fault.New(fault.Invalid, "%s cannot be executed: %w", binary, err)
	}
	text, err := io.ReadAll(io.LimitReader(r, 4096))
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		return about, fault.New(fault.Unsupported, "%s does not say what it is: %w", binary, err)
	}
	if err := json.Unmarshal(text, &about); err != nil || about.State == 0 {
		return about, fault.New(fault.Unsupported, "%s is no worknode-monitor that can take over, or one that does not work; it says %.100q", binary, text)
	}
	return about, nil
}

// flush waits until the clients have what was answered. Both gates are shut.
func (m *Monitor) flush() {
	deadline := time.Now().Add(flushLimit)
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.conns {
		for !p.idle() && time.Now().Before(deadline) {
			<-time.After(time.Millisecond)
		}
		if !p.idle() {
			slog.Warn("client dropped: it does not read")
			delete(m.conns, p)
			_ = p.conn.Close()
		}
	}
}

func (p *peer) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.busy && len(p.outbox) == 0
}

// become executes the binary. It returns only with an error, and everything is as before then.
func (m *Monitor) become(binary string, from *peer, seq uint64) error {
	state, keep := m.capture(from, seq)
	memory, err := store(state)
	if err != nil {
		return err
	}
	defer unix.Close(memory)
	back, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("own binary: %w", err)
	}
	defer unix.Close(back)
	// A handler is gone with its build; what would end the process in the moment before the next handler is ignored.
	signal.Ignore(handled[1:]...)
	defer signal.Notify(m.caught, handled...)
	keep = append(keep, memory, back)
	closeOnExec(keep, false)
	defer closeOnExec(keep, true)
	return execute(binary, m.opts, Handover{State: memory, Back: back})
}

// execute is execve with the arguments of a takeover.
func execute(binary string, o Options, h Handover) error {
	args := []string{os.Args[0], "--socket", o.Socket, "--state", o.State, stateArg, strconv.Itoa(h.State)}
	if h.Back != 0 {
		args[0] = binary
		args = append(args, backArg, strconv.Itoa(h.Back))
	}
	if h.Why != "" {
		args = append(args, whyArg, h.Why)
	}
	if err := syscall.Exec(binary, args, os.Environ()); err != nil {
		return fault.New(fault.Invalid, "execute %s: %w", binary, err)
	}
	return nil
}

// closeOnExec sets or clears the flag. What is closed already does not matter.
func closeOnExec(fds []int, on bool) {
	flag := 0
	if on {
		flag = unix.FD_CLOEXEC
	}
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
	}
}
