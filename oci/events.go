package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	"worknode/kernel/cgroup"
)

// event is one line of `events`, in runc's form as far as it goes.
type event struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

// events prints statistics at an interval and every out-of-memory kill, until the container ends.
func (c *call) events(f *flags, args []string) error {
	interval, once := 5*time.Second, false
	f.DurationVar(&interval, "interval", interval, "time between statistics")
	f.yes(&once, "print statistics once", "stats")
	rest, err := f.take(args, 1, 1)
	if err != nil {
		return err
	}
	if interval <= 0 {
		return fault.New(fault.Invalid, "events: --interval %v is not a time to wait", interval)
	}
	k, err := c.open(rest[0])
	if err != nil {
		return err
	}
	if k.status() == specs.StateStopped {
		return fault.New(fault.NotFound, "container %s is not running", k.ID)
	}
	tree, err := cgroup.Open()
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	kills := oomKills(tree, k.Cgroup)
	for k.status() != specs.StateStopped {
		stats, err := tree.Stats(k.Cgroup)
		if err != nil {
			return err
		}
		if err := out.Encode(event{"stats", k.ID, statistics(stats)}); err != nil || once {
			return err
		}
		for next := time.Now().Add(interval); time.Now().Before(next) && k.status() != specs.StateStopped; {
			if now := oomKills(tree, k.Cgroup); now > kills {
				kills = now
				if err := out.Encode(event{Type: "oom", ID: k.ID}); err != nil {
					return err
				}
			}
			<-time.After(min(time.Until(next), 100*time.Millisecond))
		}
	}
	return nil
}

func statistics(s cgroup.Stats) any {
	type m = map[string]any
	return m{
		"cpu":    m{"usage": m{"total": s.CPUNanos}},
		"memory": m{"usage": m{"usage": s.MemoryUsage, "limit": s.MemoryLimit}, "raw": m{"rss": s.MemoryRSS, "swap": s.Swap}},
		"pids":   m{"current": s.Pids},
	}
}

// oomKills counts. Source: memory.events (v2) and memory.oom_control (v1) both have the line.
func oomKills(tree *cgroup.Tree, group string) int {
	text, err := os.ReadFile(tree.OOMFile(group))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			count, _ := strconv.Atoi(strings.TrimSpace(n))
			return count
		}
	}
	return 0
}

// ps lists the processes of a container: as numbers for engines, as a table of ps(1) for people.
func (c *call) ps(f *flags, args []string) error {
	format := "table"
	f.text(&format, "table or json", "format", "f")
	rest, err := f.take(args, 1, -1)
	if err != nil {
		return err
	}
	k, err := c.open(rest[0])
	if err != nil {
		return err
	}
	tree, err := cgroup.Open()
	if err != nil {
		return err
	}
	pids, err := tree.Procs(k.Cgroup)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if format == "json" {
		if pids == nil {
			pids = []int{}
		}
		return json.NewEncoder(os.Stdout).Encode(pids)
	}
	if len(pids) == 0 {
		return nil
	}
	options := rest[1:]
	if len(options) == 0 {
		options = []string{"-o", "user,pid,ppid,stime,tty,time,args"}
	}
	var list []string
	for _, p := range pids {
		list = append(list, strconv.Itoa(p))
	}
	line := append([]string{"ps"}, append(options, "-p", strings.Join(list, ","))...)
	for _, program := range []string{"/usr/bin/ps", "/bin/ps"} {
		err = syscall.Exec(program, line, os.Environ())
	}
	return fault.Hint(fmt.Errorf("ps: %w", err), "--format json needs no such program")
}

func (c *call) checkpoint(*flags, []string) error {
	return fault.New(fault.Unsupported, "checkpoint and restore are not supported")
}
