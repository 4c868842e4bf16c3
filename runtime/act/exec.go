package act

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"worknode/monitor/wire"
	"worknode/runtime/plan"
	"worknode/runtime/state"
)

// Exec turns a command in a running container into what the monitor takes. The process gets what the container's
// first process got: user, rights, filter, environment, cgroup.
func (h *Hands) Exec(id string, c *state.Container, made plan.Made, command []string, terminal bool) (wire.Start, error) {
	init, err := h.process(made.Spec, made.Seccomp)
	if err != nil {
		return wire.Start{}, err
	}
	init.Args = command
	init.Cgroup = h.Tree.ProcsFiles(c.Cgroup)
	if terminal && !hasEnv(init.Env, "TERM") {
		init.Env = append(init.Env, "TERM=xterm")
	}
	return wire.Start{ID: id, Join: c.ID, Terminal: terminal, Init: init}, nil
}

func hasEnv(env []string, key string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, key+"=") {
			return true
		}
	}
	return false
}

// killRounds bounds the hunt for a process tree that forks while it is being killed.
const killRounds = 16

// KillTree kills an exec with everything it started: descendants, and those whose parent has gone but which stay in
// its session. A process that left both (setsid twice removed) is the container's and ends with it.
func (h *Hands) KillTree(c *state.Container, root int) {
	for range killRounds {
		pids, err := h.Tree.Procs(c.Cgroup)
		if err != nil {
			break
		}
		procs := map[int]proc{}
		for _, pid := range pids {
			if p, ok := readProc(pid); ok {
				procs[pid] = p
			}
		}
		killed := 0
		for pid, p := range procs {
			if pid != c.Pid && (pid == root || p.session == root || below(procs, pid, root)) && p.state != 'Z' {
				if unix.Kill(pid, unix.SIGKILL) == nil {
					killed++
				}
			}
		}
		if killed == 0 {
			break
		}
	}
}

type proc struct {
	parent, session int
	state           byte
}

func below(procs map[int]proc, pid, root int) bool {
	for range len(procs) + 1 {
		p, ok := procs[pid]
		if !ok {
			return false
		}
		if p.parent == root {
			return true
		}
		pid = p.parent
	}
	return false
}

// readProc reads parent and session. Source: proc(5), /proc/PID/stat: the name in parentheses may hold anything.
func readProc(pid int) (proc, bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return proc{}, false
	}
	_, rest, ok := cutLast(string(text), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 4 {
		return proc{}, false
	}
	parent, _ := strconv.Atoi(f[1])
	session, _ := strconv.Atoi(f[3])
	return proc{parent, session, f[0][0]}, true
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
