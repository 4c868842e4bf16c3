// Package sysctl sets what the kernel's connection tracking needs for many Services: its size, never lowered, and how
// long connections are remembered. It also sets the process's own standing with the kernel's out-of-memory killer.
//
// Source: Kubernetes 1.37 pkg/proxy/conntrack/sysctls.go; kernel Documentation/networking/nf_conntrack-sysctl.rst.
package sysctl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"worknode/fault"
	"worknode/kernel/cpulist"
)

// Conntrack is what is wanted. Zero leaves a setting as it is.
type Conntrack struct {
	Max         int // connections at least; of the whole machine
	Established time.Duration
	CloseWait   time.Duration
	UDP         time.Duration
	UDPStream   time.Duration
	BeLiberal   bool
}

// most bounds the table of connections on machines with many cores: a million entries are 300 MB.
const most = 1 << 20

// Max is how many connections a machine with so many cores should track. Source: getConntrackMax.
func Max(perCore, least, cores int) int {
	switch {
	case perCore <= 0:
		return 0
	case perCore*cores > most:
		return most
	}
	return max(perCore*cores, least)
}

// Tree is where the kernel's settings are; a test has its own.
type Tree struct{ Proc, Sys string }

// Kernel is the real one, as the calling thread's network namespace sees it.
var Kernel = Tree{"/proc", "/sys"}

func (t Tree) path(name string) string { return filepath.Join(t.Proc, "sys/net/netfilter", name) }

func (t Tree) hashSize() string {
	return filepath.Join(t.Sys, "module/nf_conntrack/parameters/hashsize")
}

// Changed is one setting that Apply changed.
type Changed struct {
	Name     string
	Was, Now int
}

// Apply sets what is not as wanted and returns what it changed. Every setting is tried; errors name each that failed, and
// kinds are Denied where the right or the namespace is missing. Repeat: safe.
func (t Tree) Apply(want Conntrack) ([]Changed, error) {
	var changed []Changed
	var errs []error
	set := func(path string, to int, raise bool) {
		was, err := read(path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			errs = append(errs, fault.Hint(fault.New(fault.Unsupported, "%s: not there", filepath.Base(path)), "connection tracking is not loaded yet (modprobe nf_conntrack)"))
			return
		case err == nil && (was == to || raise && was >= to):
			return
		}
		if err := os.WriteFile(path, []byte(strconv.Itoa(to)), 0o644); err != nil {
			errs = append(errs, fault.Hint(fault.New(fault.Denied, "set %s to %d: %w", filepath.Base(path), to, err),
				"it is %d; set it on the host as root, or once by --init-only", was))
			return
		}
		changed = append(changed, Changed{filepath.Base(path), was, to})
	}
	if want.Max > 0 {
		set(t.path("nf_conntrack_max"), want.Max, true)
		set(t.hashSize(), want.Max/4, true)
	}
	for _, timeout := range []struct {
		name string
		want time.Duration
	}{
		{"tcp_timeout_established", want.Established}, {"tcp_timeout_close_wait", want.CloseWait},
		{"udp_timeout", want.UDP}, {"udp_timeout_stream", want.UDPStream},
	} {
		if timeout.want > 0 {
			set(t.path("nf_conntrack_"+timeout.name), int(timeout.want/time.Second), false)
		}
	}
	if want.BeLiberal {
		set(t.path(liberal), 1, false)
	}
	return changed, errors.Join(errs...)
}

const liberal = "nf_conntrack_tcp_be_liberal"

// Liberal tells whether packets out of the window are translated all the same.
func (t Tree) Liberal() bool {
	v, err := read(t.path(liberal))
	return err == nil && v != 0
}

// Cores is the number of the machine's cores that are online, whatever this process may use: the limits above are the
// machine's.
func (t Tree) Cores() int { return cpulist.Online(t.Sys) }

func read(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

// ProtectSelf sets this process's oom_score_adj. Who may not go as low as asked (that takes CAP_SYS_RESOURCE) goes as low
// as allowed; got is what it came to. Errors: none that matters to Services.
func (t Tree) ProtectSelf(want int) (got int, err error) {
	path := filepath.Join(t.Proc, "self/oom_score_adj")
	try := func(v int) error { return os.WriteFile(path, []byte(strconv.Itoa(v)), 0o644) }
	if err = try(want); err == nil {
		return want, nil
	}
	have, readErr := read(path)
	if readErr != nil {
		return 0, readErr
	}
	// Between what we may not have and what we have lies the lowest value that the kernel allows.
	for low, high := want, have; low+1 < high; {
		if mid := low + (high-low)/2; try(mid) == nil {
			high, have = mid, mid
		} else {
			low = mid
		}
	}
	return have, nil
}
