package act

import (
	"bufio"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	writtenFor   = time.Minute // how long a measured writable layer counts as current
	writtenFiles = 100_000     // where measuring stops: a rough figure beats a busy disk
)

// Written measures writable layers, each at most once a minute.
type Written struct {
	mu   sync.Mutex
	last map[string]written
}

type written struct {
	at             time.Time
	bytes, entries uint64
}

// Of returns the bytes on disk and the inodes of a container's writable layer; up to a minute old.
func (w *Written) Of(dir string) (bytes, inodes uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m, ok := w.last[dir]
	if !ok || time.Since(m.at) > writtenFor {
		m = measure(dir)
		if w.last == nil {
			w.last = map[string]written{}
		}
		w.last[dir] = m
	}
	return m.bytes, m.entries
}

// Drop forgets a removed layer.
func (w *Written) Drop(dir string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.last, dir)
}

func measure(dir string) written {
	m := written{at: time.Now()}
	walk := func(_ string, e fs.DirEntry, err error) error {
		if err != nil || m.entries >= writtenFiles {
			return fs.SkipDir // files come and go
		}
		m.entries++
		if info, err := e.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				m.bytes += uint64(st.Blocks) * 512
			}
		}
		return nil
	}
	if err := filepath.WalkDir(dir, walk); err != nil {
		slog.Debug("writable layer not measured", "folder", dir, "error", err)
	}
	return m
}

// Traffic is what one network device carried.
type Traffic struct {
	Device                                  string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// ReadTraffic reads the devices of the network namespace that a process is in, loopback excluded.
// Source: proc(5), /proc/PID/net/dev.
func ReadTraffic(pid int) []Traffic {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/net/dev")
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []Traffic
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		n := strings.Fields(rest)
		name = strings.TrimSpace(name)
		if !ok || name == "lo" || len(n) < 12 {
			continue
		}
		number := func(i int) uint64 { v, _ := strconv.ParseUint(n[i], 10, 64); return v }
		out = append(out, Traffic{name, number(0), number(1), number(2), number(3),
			number(8), number(9), number(10), number(11)})
	}
	return out
}
