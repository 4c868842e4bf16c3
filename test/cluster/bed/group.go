package bed

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"worknode/kernel/cgroup"
)

const cgroups = "/sys/fs/cgroup"

// group is a cgroup below which everything of a bed, a node or a part lives, by its path such as /bed-1/n1.
type group string

// make creates the group; with every, in all hierarchies that a kubelet asks for.
func (g group) make(every bool) error {
	tree, err := cgroup.Open()
	if err != nil {
		return err
	}
	if err := tree.Make(string(g), cgroup.Resources{}); err != nil || !every || tree.V2() {
		return err
	}
	all, _ := filepath.Glob(cgroups + "/*/cgroup.procs")
	for _, h := range all {
		if err := g.makeIn(filepath.Dir(h)); err != nil {
			return err
		}
	}
	return nil
}

// makeIn creates the group in one v1 hierarchy. A new cpuset is empty, and nothing can be put into an empty one.
func (g group) makeIn(at string) error {
	for part := range strings.SplitSeq(strings.Trim(string(g), "/"), "/") {
		parent := at
		at += "/" + part
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		for _, name := range []string{"/cpuset.cpus", "/cpuset.mems"} {
			if from, err := os.ReadFile(parent + name); err == nil {
				if err := os.WriteFile(at+name, from, 0); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// files are where a process writes 0 to join the group.
func (g group) files() []string {
	tree, err := cgroup.Open()
	if err != nil {
		return nil
	}
	return tree.ProcsFiles(string(g))
}

// accounting is the hierarchy that counts CPU time, and that everything of a bed is in.
func (g group) accounting() string {
	if _, err := os.Stat(cgroups + "/cgroup.controllers"); err == nil {
		return cgroups + string(g)
	}
	return cgroups + "/cpuacct" + string(g)
}

// members are the processes of a group and all below it.
func (g group) members() []int {
	var out []int
	_ = filepath.WalkDir(g.accounting(), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "cgroup.procs" {
			return nil // groups vanish meanwhile
		}
		text, _ := os.ReadFile(path)
		for f := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(f); err == nil && !slices.Contains(out, pid) {
				out = append(out, pid)
			}
		}
		return nil
	})
	return out
}

// end kills all that is in the group and removes it from every hierarchy that anybody made it in.
func (g group) end() {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		left := g.members()
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(left) == 0 {
			break
		}
	}
	tops, _ := filepath.Glob(cgroups + "/*" + string(g))
	for _, top := range append(tops, cgroups+string(g)) {
		var dirs []string
		_ = filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // groups vanish meanwhile
		})
		for _, dir := range slices.Backward(dirs) {
			// A group stays busy for a moment after its last process ended.
			for range 50 {
				if err := syscall.Rmdir(dir); err != syscall.EBUSY {
					break
				}
				<-time.After(20 * time.Millisecond)
			}
		}
	}
}

// CPU is the time that the group and all that ever was below it used.
func (g group) CPU() time.Duration {
	if text, err := os.ReadFile(g.accounting() + "/cpuacct.usage"); err == nil {
		ns, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return time.Duration(ns)
	}
	text, _ := os.ReadFile(g.accounting() + "/cpu.stat")
	for line := range strings.Lines(string(text)) {
		if us, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(us), 10, 64)
			return time.Duration(n) * time.Microsecond
		}
	}
	return 0
}
