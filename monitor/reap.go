package monitor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/pidfd"
	"worknode/monitor/wire"
)

// reap collects every child that has ended. It is the only place that waits: whoever else did would take others' exit
// codes. Orphans of containers land here too, as the monitor is their subreaper; they are unknown and ignored.
func (m *Monitor) reap() {
	m.reaping.Lock() // who has looked knows all that ended before
	defer m.reaping.Unlock()
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, unix.WNOHANG|unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		m.mu.Lock()
		p := m.pids[pid]
		delete(m.pids, pid)
		if p == nil && m.starting > 0 {
			m.early[pid] = st // it may be one whose start has not registered it yet
		}
		m.mu.Unlock()
		if p != nil {
			p.finish(exitOf(p.info.ID, st, time.Now()))
		}
	}
}

// register makes a started process known; it may have ended already.
func (m *Monitor) register(p *process) {
	m.mu.Lock()
	m.procs[p.info.ID] = p
	st, ended := m.early[p.info.Pid]
	if !ended {
		m.pids[p.info.Pid] = p
	}
	m.started()
	m.mu.Unlock()
	if ended {
		p.finish(exitOf(p.info.ID, st, time.Now()))
	}
}

// started closes a start's window for early exits. The caller holds mu.
func (m *Monitor) started() {
	m.starting--
	if m.starting == 0 {
		clear(m.early)
	}
}

// signal sends sig to the process or, with all, to all that belong to it.
func (p *process) signal(sig unix.Signal, all bool) error {
	p.mu.Lock()
	died, info := p.died, p.info
	p.mu.Unlock()
	if died && !all {
		return fault.New(fault.NotFound, "signal %d: process %s has exited", sig, info.ID)
	}
	if !all {
		return pidfd.Signal(p.pidfd, sig)
	}
	if info.Join == "" && sig == unix.SIGKILL && killGroup(info.Cgroup) {
		return nil
	}
	// Several rounds: what is forked between listing and killing is found by the next one.
	for range 5 {
		n := 0
		for _, pid := range p.members(info) {
			if unix.Kill(pid, sig) == nil {
				n++
			}
		}
		if n == 0 || sig != unix.SIGKILL {
			break
		}
	}
	return nil
}

// killGroup kills a cgroup v2 at once. Source: kernel cgroup-v2, cgroup.kill. Needs: kernel 5.14.
func killGroup(procs []string) bool {
	if len(procs) != 1 {
		return false
	}
	return os.WriteFile(filepath.Join(filepath.Dir(procs[0]), "cgroup.kill"), []byte("1"), 0) == nil
}

// members lists the pids that belong to a container: those of its cgroup; or to an exec: the process, its session and
// its descendants, as it shares the cgroup with the container.
func (p *process) members(info wire.Process) []int {
	var pids []int
	if len(info.Cgroup) > 0 {
		pids = procsBelow(filepath.Dir(info.Cgroup[0]))
	}
	if info.Join == "" {
		if len(pids) == 0 {
			pids = []int{info.Pid}
		}
		return pids
	}
	stats := map[int]pidfd.Stat{}
	for _, pid := range pids {
		if st, err := pidfd.ReadStat(pid); err == nil && st.State != 'Z' {
			stats[pid] = st
		}
	}
	mine := map[int]bool{info.Pid: true}
	for grew := true; grew; {
		grew = false
		for pid, st := range stats {
			if !mine[pid] && (mine[st.PPid] || st.Session == info.Pid) {
				mine[pid], grew = true, true
			}
		}
	}
	out := make([]int, 0, len(mine))
	for pid := range mine {
		st, ok := stats[pid]
		if pid == info.Pid && (!ok || st.StartTime != info.StartTime) {
			continue // it has gone, and its number may be somebody else's
		}
		out = append(out, pid)
	}
	return out
}

func procsBelow(dir string) (pids []int) {
	body, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	for line := range strings.FieldsSeq(string(body)) {
		if pid, err := strconv.Atoi(line); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		if e.IsDir() {
			pids = append(pids, procsBelow(filepath.Join(dir, e.Name()))...)
		}
	}
	return pids
}
