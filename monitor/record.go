package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"worknode/fault"
	"worknode/monitor/wire"
)

// Exit records lie in the state directory, one small file per process, from the moment of death until the runtime
// says Forget. They are what a killed monitor leaves to the next one. A corrupt record costs its process alone.

func (m *Monitor) recordPath(id string) string { return filepath.Join(m.dir, id+".json") }

// remember writes p's exit record.
func (m *Monitor) remember(p *process, exit wire.Exit) {
	p.mu.Lock()
	info := p.info
	p.mu.Unlock()
	info.Exit, info.Files = &exit, nil
	body, err := json.Marshal(info)
	if err == nil {
		tmp := filepath.Join(m.dir, ".tmp-"+info.ID)
		if err = os.WriteFile(tmp, body, 0o600); err == nil {
			err = os.Rename(tmp, m.recordPath(info.ID))
		}
	}
	if err != nil {
		slog.Error("exit record is lost if the monitor is killed now", "id", info.ID, "code", exit.Code, "error", err)
	}
}

// recall reads the records of a predecessor.
func (m *Monitor) recall() error {
	list, err := os.ReadDir(m.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		name := filepath.Join(m.dir, e.Name())
		if strings.HasPrefix(e.Name(), ".tmp-") {
			os.Remove(name)
			continue
		}
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || checkID(id) != nil {
			continue
		}
		var info wire.Process
		body, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(body, &info)
		}
		if err == nil && (info.ID != id || info.Exit == nil) {
			err = errors.New("it names another process, or no exit")
		}
		if err != nil {
			slog.Error("exit record cannot be read, its process will be reported as unknown", "file", name, "error", err)
			os.Remove(name)
			continue
		}
		m.procs[id] = &process{m: m, info: info, died: true, old: true}
	}
	return nil
}

// forget drops an exited process and its record.
func (m *Monitor) forget(id string) error {
	p, err := m.find(id)
	if fault.Is(err, fault.NotFound) {
		return nil // forgotten already: the answer to the first request may have been lost
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	running := p.info.Exit == nil
	p.mu.Unlock()
	if running {
		return fault.New(fault.Busy, "process %s is still running", id)
	}
	m.mu.Lock()
	delete(m.procs, id)
	m.mu.Unlock()
	os.Remove(m.recordPath(id))
	m.tasks.Go("forget "+id, func(context.Context) { p.release() })
	return nil
}

// oomKilled reads whether the kernel's OOM killer chose a process of the cgroup. The runtime removes the cgroup only
// after it has heard of the exit. Source: kernel cgroup-v2, memory.events; cgroup-v1 memory.oom_control.
func oomKilled(file string) bool {
	if file == "" {
		return false
	}
	body, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(body)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 64)
			return err == nil && n > 0
		}
	}
	return false
}
