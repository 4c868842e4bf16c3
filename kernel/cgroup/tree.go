// Package cgroup makes, limits, reads and removes control groups, on v2 and on v1 (a hybrid machine counts as v1).
// Paths are those of the tree, such as /kubepods/pod1/c1, the same in every hierarchy. It is the cgroupfs driver: it
// writes files and asks no service manager. It decides no limits.
// Source: kernel cgroup-v2.rst; cgroup-v1/*.rst; OCI runtime spec, config-linux.md, "Control groups".
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/mount"
	"worknode/kernel/pidfd"
)

// Tree is where the machine's groups are. It has no state and is safe for concurrent use.
type Tree struct {
	v2    bool
	whole bool
	root  string            // v2
	at    map[string]string // v1: controller → mount point
	more  []string          // v1: mount points of the other hierarchies, where others make groups for us
}

// basic are the v1 controllers that every group is made in. Fewer hierarchies make starts faster: each one costs a
// directory and a move. cpuset and hugetlb join when asked for; freezer, blkio and systemd never.
var basic = [...]string{"cpu", "cpuacct", "memory", "pids", "devices"}

var optional = [...]string{"cpuset", "hugetlb"}

// rare are controllers that only a Whole tree has groups in.
var rare = [...]string{"freezer", "blkio", "net_cls", "net_prio", "perf_event", "rdma"}

// Whole is the same tree with groups in every hierarchy that is mounted: what users of an OCI runtime expect, at the
// price of a slower start.
func (t *Tree) Whole() *Tree {
	w := *t
	w.whole = true
	return &w
}

// Open finds the mounted hierarchies. Errors: Unsupported if there are none.
func Open() (*Tree, error) {
	points, err := mount.Table()
	if err != nil {
		return nil, err
	}
	return find(points)
}

func find(points []mount.Point) (*Tree, error) {
	t := &Tree{at: map[string]string{}}
	for _, p := range points {
		switch p.Type {
		case "cgroup2":
			if t.root == "" || p.Path == "/sys/fs/cgroup" {
				t.root = p.Path
			}
		case "cgroup":
			for o := range strings.SplitSeq(p.SuperOptions, ",") {
				if (slices.Contains(basic[:], o) || slices.Contains(optional[:], o) || slices.Contains(rare[:], o)) && t.at[o] == "" {
					t.at[o] = p.Path
				}
			}
		}
	}
	t.v2 = t.root != "" && len(t.at) == 0
	if t.v2 {
		return t, nil
	}
	for _, p := range points {
		served := slices.ContainsFunc(slices.Concat(basic[:], optional[:]), func(c string) bool { return t.at[c] == p.Path })
		if (p.Type == "cgroup" || p.Type == "cgroup2") && !served {
			t.more = append(t.more, p.Path)
		}
	}
	if !t.v2 && t.at["memory"] == "" && t.at["cpu"] == "" {
		return nil, fault.Hint(fault.New(fault.Unsupported, "no cgroup hierarchy is mounted"), "mount cgroup2 on /sys/fs/cgroup")
	}
	return t, nil
}

// V2 reports whether this machine has cgroup v2 alone.
func (t *Tree) V2() bool { return t.v2 }

// Lacks returns those of the controllers that no group of this machine can have.
func (t *Tree) Lacks(controllers ...string) (lacks []string) {
	have := fields(filepath.Join(t.root, "cgroup.controllers"))
	for _, c := range controllers {
		if t.v2 && !slices.Contains(have, c) || !t.v2 && t.at[c] == "" {
			lacks = append(lacks, c)
		}
	}
	return lacks
}

// dirs are the distinct directories of a group; with present, optional hierarchies only where it exists.
func (t *Tree) dirs(group string, more ...string) []string {
	if t.v2 {
		return []string{filepath.Join(t.root, group)}
	}
	var out []string
	add := func(c string) {
		if m := t.at[c]; m != "" {
			if d := filepath.Join(m, group); !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
	}
	for _, c := range basic {
		add(c)
	}
	for _, c := range more {
		add(c)
	}
	if t.whole {
		for _, c := range slices.Concat(optional[:], rare[:]) {
			add(c)
		}
	}
	return out
}

// present are the directories of a group that may exist, the optional ones only if they do.
func (t *Tree) present(group string) []string {
	out := t.dirs(group)
	if t.v2 {
		return out
	}
	for _, c := range optional {
		if m := t.at[c]; m != "" {
			d := filepath.Join(m, group)
			if _, err := os.Lstat(d); err == nil && !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
	}
	return out
}

// dir is the group's directory in one controller's hierarchy.
func (t *Tree) dir(controller, group string) (string, error) {
	if t.v2 {
		return filepath.Join(t.root, group), nil
	}
	if m := t.at[controller]; m != "" {
		return filepath.Join(m, group), nil
	}
	return "", fault.New(fault.Unsupported, "cgroup %s: the %s controller is not mounted", group, controller)
}

func clean(group string) (string, error) {
	if group == "" || strings.ContainsAny(group, "\x00\n") || slices.Contains(strings.Split(group, "/"), "..") {
		return "", fault.New(fault.Invalid, "cgroup path %q is not one", group)
	}
	return path.Clean("/" + group), nil
}

// Make makes a group and those above it, and applies r. Limits of groups above are left alone.
// Errors: Denied without the right, Exhausted when the kernel allows no more, Unsupported for a controller it lacks.
// Repeat: safe. Crash: some hierarchies have the group and some not; Make and Remove both complete their work.
func (t *Tree) Make(group string, r Resources) error {
	group, err := clean(group)
	if err != nil {
		return err
	}
	if t.v2 {
		if err := t.enable(path.Dir(group)); err != nil {
			return err
		}
	}
	var more []string
	if r.CpusetCpus != "" || r.CpusetMems != "" {
		more = append(more, "cpuset")
	}
	if len(t.hugepages(r)) > 0 {
		more = append(more, "hugetlb")
	}
	for _, d := range t.dirs(group, more...) {
		if err := makeDir(d); err != nil {
			return err
		}
	}
	if !t.v2 && (len(more) > 0 && more[0] == "cpuset" || t.whole && t.at["cpuset"] != "") {
		if err := t.inheritCpuset(group); err != nil {
			return err
		}
	}
	return t.apply(group, r)
}

func makeDir(d string) error {
	err := os.Mkdir(d, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(d, 0o755)
	}
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return fault.As(kindOf(err), fmt.Errorf("cgroup: %w", err))
}

// wanted are the v2 controllers that groups below may use, in the order they are tried.
var wanted = [...]string{"cpu", "memory", "pids", "cpuset", "io", "hugetlb"}

// enable makes the controllers available to the children of group, top down.
func (t *Tree) enable(group string) error {
	dir := filepath.Join(t.root, group)
	need := func(dir string) (missing []string) {
		have := fields(filepath.Join(dir, "cgroup.subtree_control"))
		can := fields(filepath.Join(dir, "cgroup.controllers"))
		for _, c := range wanted {
			if slices.Contains(can, c) && !slices.Contains(have, c) {
				missing = append(missing, c)
			}
		}
		return missing
	}
	if _, err := os.Lstat(dir); err == nil && group != "/" {
		if have := fields(filepath.Join(dir, "cgroup.subtree_control")); slices.Contains(have, "memory") && slices.Contains(have, "pids") {
			return nil
		}
	}
	at := t.root
	for _, part := range append([]string{""}, strings.Split(strings.Trim(group, "/"), "/")...) {
		at = filepath.Join(at, part)
		if err := makeDir(at); err != nil {
			return err
		}
		for _, c := range need(at) {
			err := write(filepath.Join(at, "cgroup.subtree_control"), "+"+c)
			if errors.Is(err, unix.EBUSY) {
				return fault.Hint(err, "processes live in %s itself; a group with children that have controllers must have none", at)
			}
			if err != nil && (c == "cpu" || c == "memory" || c == "pids") {
				return err
			}
		}
	}
	return nil
}

func fields(file string) []string {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// inheritCpuset fills empty cpusets from above: no process can be in a v1 group without CPUs and memory nodes.
func (t *Tree) inheritCpuset(group string) error {
	at := t.at["cpuset"]
	if at == "" {
		return fault.New(fault.Unsupported, "cgroup %s: the cpuset controller is not mounted", group)
	}
	for part := range strings.SplitSeq(strings.Trim(group, "/"), "/") {
		parent := at
		at = filepath.Join(at, part)
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if len(fields(filepath.Join(at, name))) > 0 {
				continue
			}
			if from := fields(filepath.Join(parent, name)); len(from) > 0 {
				if err := write(filepath.Join(at, name), from[0]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Set applies r to a group that exists. Errors: NotFound if it does not, Busy if memory in use is above a new limit.
// Repeat: safe. Crash: some of r is applied.
func (t *Tree) Set(group string, r Resources) error {
	group, err := clean(group)
	if err != nil {
		return err
	}
	if !t.v2 && (r.CpusetCpus != "" || r.CpusetMems != "") {
		if dir, err := t.dir("cpuset", group); err != nil {
			return err
		} else if _, err := os.Lstat(dir); err != nil {
			return fault.New(fault.Unsupported, "cgroup %s: it was made without a cpuset; its processes would have to move", group)
		}
	}
	return t.apply(group, r)
}

// ProcsFiles are the cgroup.procs files to write a pid into, so that it joins the group everywhere.
func (t *Tree) ProcsFiles(group string) []string {
	var out []string
	for _, d := range t.present(path.Clean("/" + group)) {
		out = append(out, filepath.Join(d, "cgroup.procs"))
	}
	return out
}

// OOMFile is where the kernel counts its OOM kills in the group ("oom_kill N").
func (t *Tree) OOMFile(group string) string {
	if t.v2 {
		return filepath.Join(t.root, group, "memory.events")
	}
	if m := t.at["memory"]; m != "" {
		return filepath.Join(m, group, "memory.oom_control")
	}
	return ""
}

// Procs lists the processes of a group and all below it. Errors: NotFound if it does not exist.
func (t *Tree) Procs(group string) ([]int, error) {
	dir := t.presentDir(group)
	if _, err := os.Lstat(dir); err != nil {
		return nil, fault.As(kindOf(err), fmt.Errorf("cgroup: %w", err))
	}
	return procs(dir), nil
}

// presentDir is the directory that tells who is in the group: every process is in all hierarchies.
func (t *Tree) presentDir(group string) string {
	dirs := t.dirs(path.Clean("/" + group))
	for _, d := range dirs {
		if _, err := os.Lstat(d); err == nil {
			return d
		}
	}
	return dirs[0]
}

func procs(dir string) (out []int) {
	for _, f := range fields(filepath.Join(dir, "cgroup.procs")) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			out = append(out, pid)
		}
	}
	for _, sub := range children(dir) {
		out = append(out, procs(filepath.Join(dir, sub))...)
	}
	return out
}

func children(dir string) (out []string) {
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out
}

// Under lists the groups below prefix, at any depth, in whichever hierarchy they are, sorted. None is not an error.
func (t *Tree) Under(prefix string) ([]string, error) {
	prefix, err := clean(prefix)
	if err != nil {
		return nil, err
	}
	var out []string
	var walk func(dir, group string)
	walk = func(dir, group string) {
		for _, c := range children(dir) {
			sub := path.Join(group, c)
			out = append(out, sub)
			walk(filepath.Join(dir, c), sub)
		}
	}
	for _, d := range t.present(prefix) {
		walk(d, prefix)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// waitLimit bounds how long Kill and Remove wait for killed processes to leave.
const waitLimit = 5 * time.Second

// Kill kills every process in a group and below it, and returns when they have gone. No such group is success.
// Errors: Busy if some do not go (uninterruptible sleep); Denied if the caller itself is inside.
func (t *Tree) Kill(group string) error {
	group, err := clean(group)
	if err != nil || group == "/" {
		return fault.New(fault.Invalid, "kill cgroup %q: it is not one of ours", group)
	}
	deadline := time.Now().Add(waitLimit)
	for {
		dir := t.presentDir(group)
		pids := procs(dir)
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fault.New(fault.Busy, "kill cgroup %s: new processes appear faster than they can be killed: %v", group, pids)
		}
		if slices.Contains(pids, os.Getpid()) {
			return fault.New(fault.Denied, "kill cgroup %s: this process is in it", group)
		}
		if !t.v2 || write(filepath.Join(dir, "cgroup.kill"), "1") != nil {
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if !waitGone(pids, deadline) {
			return fault.New(fault.Busy, "kill cgroup %s: processes %v do not end", group, procs(dir))
		}
	}
}

// waitGone returns when one of the processes has ended, or false at the deadline. It waits by descriptor: no polling.
func waitGone(pids []int, deadline time.Time) bool {
	var set []unix.PollFd
	for _, pid := range pids[:min(len(pids), 64)] {
		f, err := pidfd.Open(pid)
		if err != nil {
			return time.Now().Before(deadline) // it has gone already
		}
		defer f.Close()
		raw, err := f.SyscallConn()
		if err == nil {
			_ = raw.Control(func(fd uintptr) { set = append(set, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}) })
		}
	}
	left := time.Until(deadline)
	if left <= 0 {
		return false
	}
	// All of them have been told to end: waiting for the last costs one round instead of many.
	for i := range set {
		for {
			n, err := unix.Poll(set[i:i+1], int(max(time.Until(deadline), 0)/time.Millisecond))
			if err == unix.EINTR {
				continue
			}
			if n == 0 {
				return false
			}
			break
		}
	}
	return true
}

// Remove removes a group and all below it, in every hierarchy that is mounted, also where other OCI runtimes made it.
// Processes that are just ending are waited for.
// Errors: Busy if a process stays. Repeat: safe; no such group is success.
func (t *Tree) Remove(group string) error {
	group, err := clean(group)
	if err != nil || group == "/" {
		return fault.New(fault.Invalid, "remove cgroup %q: it is not one of ours", group)
	}
	deadline := time.Now().Add(2 * time.Second)
	for _, d := range t.present(group) {
		if err := removeDir(d, deadline); err != nil {
			return err
		}
	}
	for _, m := range t.more {
		if err := removeDir(filepath.Join(m, group), deadline); err != nil {
			return err
		}
	}
	return nil
}

// Prune removes a group where it is empty and has none below it; where it is in use it stays.
func (t *Tree) Prune(group string) {
	group, err := clean(group)
	if err != nil || group == "/" {
		return
	}
	for _, d := range t.present(group) {
		_ = unix.Rmdir(d)
	}
}

func removeDir(dir string, deadline time.Time) error {
	err := unix.Rmdir(dir)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		for _, c := range children(dir) {
			if err := removeDir(filepath.Join(dir, c), deadline); err != nil {
				return err
			}
		}
		if err = unix.Rmdir(dir); err == nil || err == unix.ENOENT {
			return nil
		}
		pids := procs(dir)
		if err != unix.EBUSY || time.Now().After(deadline) || len(pids) > 0 && !waitGone(pids, deadline) {
			return fault.As(kindOf(err), fmt.Errorf("remove cgroup %s (processes %v): %w", dir, pids, err))
		}
		if len(pids) == 0 { // they have ended but not quite left; the kernel has no event for that on v1
			timer := time.NewTimer(wait)
			<-timer.C
		}
	}
}

func write(file, value string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		unix.Close(fd)
	}
	if err != nil {
		return fault.As(kindOf(err), fmt.Errorf("cgroup: write %q to %s: %w", value, file, err))
	}
	return nil
}

func kindOf(err error) fault.Kind {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fault.NotFound
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EROFS):
		return fault.Denied
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EAGAIN):
		return fault.Busy
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM):
		return fault.Exhausted
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.ENAMETOOLONG):
		return fault.Invalid
	}
	return fault.Unknown
}
