package bed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Process is a program of the bed. It runs in its own cgroup, so that it and all it ever started can be counted and
// ended; its output goes to Log.
type Process struct {
	Name string
	Log  string
	Args []string

	space *space
	group group
	env   []string
	cmd   *exec.Cmd
	ended chan struct{}
}

// start runs a program inside the space.
func (s *space) start(name string, env []string, argv ...string) (*Process, error) {
	p := &Process{
		Name: name, Args: argv, space: s, group: group(string(s.group) + "/" + name), env: env,
		Log: filepath.Join(s.dir, name+".log"),
	}
	if err := p.group.make(false); err != nil {
		return nil, err
	}
	return p, p.Start()
}

// Start runs the program again; it must have ended.
func (p *Process) Start() error {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = joining(p.group, p.space.enter(p.Args...)...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = log, log, append(os.Environ(), p.env...)
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	p.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) { _ = cmd.Wait(); close(ended) }(p.cmd, p.ended)
	return nil
}

// Pid is the program's; its command line may still be that of the shell that becomes it.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Alive says whether the program has not ended yet.
func (p *Process) Alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Kill ends the program alone with SIGKILL, and returns when it is gone.
func (p *Process) Kill() { p.signal(syscall.SIGKILL, 10*time.Second) }

// Stop asks the program to end, and kills it if it does not within ten seconds.
func (p *Process) Stop() {
	if !p.signal(syscall.SIGTERM, 10*time.Second) {
		p.Kill()
	}
}

func (p *Process) signal(s syscall.Signal, within time.Duration) bool {
	_ = syscall.Kill(p.cmd.Process.Pid, s)
	select {
	case <-p.ended:
		return true
	case <-time.After(within):
		return false
	}
}

// Restart kills the program and runs it again.
func (p *Process) Restart() error {
	p.Kill()
	return p.Start()
}

// CPU is the time that the program and all that it ever started used, without what runs in pods.
func (p *Process) CPU() time.Duration { return p.group.CPU() }

// Pids are those of the program and all that it started and that still runs in its group.
func (p *Process) Pids() []int { return p.group.members() }

// Said is the end of the program's output, for the message of a failed test.
func (p *Process) Said() string {
	data, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	if len(data) > 6000 {
		data = append([]byte("[...]"), data[len(data)-6000:]...)
	}
	return p.Name + " (" + strconv.Itoa(p.Pid()) + ") said:\n" + string(data)
}
