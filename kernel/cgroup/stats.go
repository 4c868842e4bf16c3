package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"worknode/fault"
)

// Stats is what a group and all below it use.
type Stats struct {
	At              time.Time
	CPUNanos        uint64 // since the group was made
	MemoryUsage     uint64 // bytes, page cache included
	MemoryWorking   uint64 // bytes: usage less inactive file pages, what eviction looks at
	MemoryRSS       uint64 // bytes of anonymous memory
	MemoryLimit     uint64 // bytes, 0: none
	PageFaults      uint64
	MajorPageFaults uint64
	Swap            uint64 // bytes
	Pids            uint64
	CPU, Memory, IO *Pressure // nil on v1
}

// Pressure is PSI: the share of time in which tasks waited, in percent over 10, 60 and 300 seconds, and the total.
// Source: kernel psi.rst.
type Pressure struct{ Some, Full Stall }

// Stall is one line of a pressure file.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                time.Duration
}

// noLimit is what v1 shows for memory without a limit: the largest page-aligned signed number.
const noLimit = 1 << 62

// Stats reads a group's use. What the kernel does not show (the root group on v2) is zero.
// Errors: NotFound if the group does not exist.
func (t *Tree) Stats(group string) (Stats, error) {
	s := Stats{At: time.Now()}
	if _, err := os.Lstat(t.presentDir(group)); err != nil {
		return s, fault.New(fault.NotFound, "cgroup: %w", err)
	}
	if t.v2 {
		t.stats2(filepath.Join(t.root, group), &s)
		return s, nil
	}
	in := func(controller, name string) string {
		dir, err := t.dir(controller, group)
		if err != nil {
			return ""
		}
		return filepath.Join(dir, name)
	}
	s.CPUNanos = number(in("cpuacct", "cpuacct.usage"))
	s.MemoryUsage = number(in("memory", "memory.usage_in_bytes"))
	s.MemoryLimit = number(in("memory", "memory.limit_in_bytes"))
	s.Pids = number(in("pids", "pids.current"))
	var inactive uint64
	each(in("memory", "memory.stat"), map[string]*uint64{
		"total_rss": &s.MemoryRSS, "total_inactive_file": &inactive, "total_pgfault": &s.PageFaults,
		"total_pgmajfault": &s.MajorPageFaults, "total_swap": &s.Swap,
	})
	s.close(inactive)
	return s, nil
}

func (s *Stats) close(inactive uint64) {
	s.MemoryWorking = s.MemoryUsage - min(inactive, s.MemoryUsage)
	if s.MemoryLimit >= noLimit {
		s.MemoryLimit = 0
	}
}

func (t *Tree) stats2(dir string, s *Stats) {
	in := func(name string) string { return filepath.Join(dir, name) }
	var micros, inactive uint64
	each(in("cpu.stat"), map[string]*uint64{"usage_usec": &micros})
	s.CPUNanos = micros * 1000
	s.MemoryUsage = number(in("memory.current"))
	s.MemoryLimit = number(in("memory.max"))
	s.Swap = number(in("memory.swap.current"))
	s.Pids = number(in("pids.current"))
	each(in("memory.stat"), map[string]*uint64{
		"anon": &s.MemoryRSS, "inactive_file": &inactive, "pgfault": &s.PageFaults, "pgmajfault": &s.MajorPageFaults,
	})
	s.close(inactive)
	s.CPU, s.Memory, s.IO = pressure(in("cpu.pressure")), pressure(in("memory.pressure")), pressure(in("io.pressure"))
}

// number reads a file with one number; "max" and what cannot be read are 0.
func number(file string) uint64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// each reads "key value" lines.
func each(file string, into map[string]*uint64) {
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if p := into[key]; p != nil {
			*p, _ = strconv.ParseUint(value, 10, 64)
		}
	}
}

func pressure(file string) *Pressure {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var p Pressure
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		s := &p.Some
		if f[0] == "full" {
			s = &p.Full
		}
		for _, kv := range f[1:] {
			key, value, _ := strings.Cut(kv, "=")
			v, _ := strconv.ParseFloat(value, 64)
			switch key {
			case "avg10":
				s.Avg10 = v
			case "avg60":
				s.Avg60 = v
			case "avg300":
				s.Avg300 = v
			case "total":
				s.Total = time.Duration(v) * time.Microsecond
			}
		}
	}
	return &p
}
