package act

import (
	"strings"

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
