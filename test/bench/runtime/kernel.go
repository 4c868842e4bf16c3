package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const cgroups = "/sys/fs/cgroup"

// hierarchies are where an accounting group must be made: cpuacct on v1, the one tree on v2.
func hierarchies() []string {
	if _, err := os.Stat(cgroups + "/cgroup.controllers"); err == nil {
		return []string{cgroups}
	}
	return []string{cgroups + "/cpuacct"}
}

func makeGroup(group string) error {
	for _, h := range hierarchies() {
		if err := os.MkdirAll(h+group, 0o755); err != nil {
			return fmt.Errorf("accounting cgroup: %w", err)
		}
	}
	return nil
}

// startIn starts a command inside a group, so that all it ever starts is accounted there too.
func startIn(cmd *exec.Cmd, group string) error {
	var moves strings.Builder
	for _, h := range hierarchies() {
		fmt.Fprintf(&moves, "echo $$ > %s/cgroup.procs && ", h+group)
	}
	line := []string{"/bin/sh", "-c", moves.String() + `exec "$0" "$@"`}
	cmd.Args = append(line, append([]string{cmd.Path}, cmd.Args[1:]...)...)
	cmd.Path = "/bin/sh"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is for us, who then end it in order
	return cmd.Start()
}

// members are the processes of a group and all below it.
func members(group string) []int {
	var out []int
	filepath.WalkDir(hierarchies()[0]+group, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "cgroup.procs" {
			return nil //nolint:nilerr // groups vanish meanwhile
		}
		text, _ := os.ReadFile(path)
		for _, f := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(f); err == nil && !slices.Contains(out, pid) {
				out = append(out, pid)
			}
		}
		return nil
	})
	return out
}

// endGroup kills what is in a group of ours and removes it, from every hierarchy a runtime may have made it in.
func endGroup(group string) {
	deadline := time.Now().Add(10 * time.Second)
	for left := members(group); len(left) > 0 && time.Now().Before(deadline); left = members(group) {
		for _, pid := range left {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		<-time.After(20 * time.Millisecond)
	}
	all, _ := filepath.Glob(cgroups + "/*" + group)
	for _, top := range append(all, cgroups+group) {
		var dirs []string
		filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		slices.Reverse(dirs)
		for _, d := range dirs {
			os.Remove(d)
		}
	}
}

// cpu is the time that a group and all below it have used; zero if it is not there.
func cpu(group string) time.Duration {
	if text, err := os.ReadFile(cgroups + "/cpuacct" + group + "/cpuacct.usage"); err == nil {
		n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return time.Duration(n)
	}
	text, _ := os.ReadFile(cgroups + group + "/cpu.stat")
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Duration(n) * time.Microsecond
		}
	}
	return 0
}

// pss sums the proportional set size of a group's processes, in bytes. Source: proc(5), smaps_rollup.
func pss(group string) (bytes int64, processes int) {
	for _, pid := range members(group) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue
		}
		processes++
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, _ := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
				bytes += n << 10
			}
		}
	}
	return bytes, processes
}

// syncs counts the calls that wait for a disk, made by a group's processes and all they start while fn runs.
func syncs(ctx context.Context, group, file string, fn func() error) (count int, err error) {
	args := []string{"-f", "-q", "-e", "trace=fsync,fdatasync,syncfs,sync,msync,sync_file_range", "-o", file}
	for _, pid := range members(group) {
		args = append(args, "-p", strconv.Itoa(pid))
	}
	tracer := exec.CommandContext(ctx, "strace", args...)
	var says bytes.Buffer
	tracer.Stderr = &says
	if err := tracer.Start(); err != nil {
		return 0, fmt.Errorf("%w (scripts/upstream installs strace)", err)
	}
	err = errors.Join(traced(ctx, members(group)), func() error {
		if err := fn(); err != nil {
			return fmt.Errorf("under strace: %w", err)
		}
		return nil
	}())
	tracer.Process.Signal(os.Interrupt)
	tracer.Wait()
	if err != nil {
		return 0, fmt.Errorf("%w; strace: %s", err, says.Bytes())
	}
	text, err := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "sync") && !strings.Contains(line, "resumed>") {
			count++
		}
	}
	return count, err
}

// traced waits until strace holds every process.
func traced(ctx context.Context, pids []int) error {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	for _, pid := range pids {
		for {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil || !strings.Contains(string(text), "TracerPid:\t0\n") {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("strace did not attach to process %d", pid)
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	return nil
}
