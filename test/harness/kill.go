package harness

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"worknode/kernel/netns"
)

// Pid finds one of the node's processes: runtime, kubelet, proxy, monitor or supervisor. 0: it does not run.
func (n *Node) Pid(name string) int {
	switch name {
	case "supervisor":
		return n.supervisor.Process.Pid
	case "monitor":
		for pid, cmdline := range processes() {
			if strings.Contains(cmdline, "worknode-monitor") && strings.Contains(cmdline, n.Place.Run) && !strings.Contains(cmdline, " init") {
				return pid
			}
		}
		return 0
	}
	var record struct{ Pid int }
	data, err := os.ReadFile(n.Place.Pid(name))
	if err != nil || json.Unmarshal(data, &record) != nil || syscall.Kill(record.Pid, 0) != nil {
		return 0
	}
	return record.Pid
}

// Kill ends one of the node's processes with SIGKILL and waits until it, or for the supervisor a new one, is back.
func (n *Node) Kill(name string) {
	n.t.Helper()
	old := n.Pid(name)
	if old == 0 {
		n.t.Fatalf("kill %s: it does not run", name)
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		n.t.Fatalf("kill %s: %v", name, err)
	}
	if name == "supervisor" {
		n.supervisor.Wait()
		n.launch(n.args)
		return
	}
	n.Until(name+" to come back", 20*time.Second, func() bool {
		pid := n.Pid(name)
		return pid != 0 && pid != old
	})
}

// Stop ends the node as Ctrl-C does.
func (n *Node) Stop() {
	n.t.Helper()
	if n.supervisor == nil || n.supervisor.ProcessState != nil {
		return
	}
	n.supervisor.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { n.supervisor.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(Slow(60 * time.Second)):
		n.t.Errorf("the supervisor did not end on SIGTERM; it said\n%s", n.Output())
		n.supervisor.Process.Kill()
		<-done
	}
}

// ExitCode of a supervisor that ended by itself.
func (n *Node) ExitCode(within time.Duration) int {
	n.t.Helper()
	done := make(chan struct{})
	go func() { n.supervisor.Wait(); close(done) }()
	select {
	case <-done:
		return n.supervisor.ProcessState.ExitCode()
	case <-time.After(Slow(within)):
		n.t.Fatalf("the supervisor runs on; it said\n%s", n.Output())
		return 0
	}
}

// leftovers fails the test for whatever of the node is still on the machine, and removes it for the next test's sake.
func (n *Node) leftovers() {
	n.t.Helper()
	for _, what := range n.Leftovers() {
		n.t.Errorf("left behind: %s", what)
	}
	for pid, cmdline := range processes() {
		if strings.Contains(cmdline, n.Root) && pid != os.Getpid() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	for _, m := range n.mounts() {
		syscall.Unmount(m, syscall.MNT_DETACH)
	}
}

// Sandboxes lists the folders in which the runtime pins the namespaces of pods.
func (n *Node) Sandboxes() []string {
	all, _ := filepath.Glob(n.Place.Run + "/runtime/live/pods/*")
	return all
}

// Leftovers lists processes, mounts and cgroups of the node.
func (n *Node) Leftovers() (all []string) {
	for pid, cmdline := range processes() {
		if strings.Contains(cmdline, n.Root) && pid != os.Getpid() {
			all = append(all, "process "+strconv.Itoa(pid)+" "+cmdline)
		}
	}
	for _, m := range n.mounts() {
		all = append(all, "mount "+m)
	}
	for _, g := range n.Cgroups("") {
		all = append(all, "cgroup "+g)
	}
	return all
}

// Cgroups lists the node's groups in every hierarchy whose path contains part.
func (n *Node) Cgroups(part string) (all []string) {
	tops, _ := filepath.Glob("/sys/fs/cgroup/*" + n.Place.Group)
	tops = append(tops, "/sys/fs/cgroup"+n.Place.Group)
	for _, top := range tops {
		filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.Contains(path, part) {
				all = append(all, path)
			}
			return nil
		})
	}
	return all
}

func (n *Node) mounts() (all []string) {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], n.Root) {
			all = append([]string{f[4]}, all...) // innermost first
		}
	}
	return all
}

// processes maps every pid to its command line, words separated by blanks.
func processes() map[int]string {
	all := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if data, err := os.ReadFile(dir + "/cmdline"); err == nil && len(data) > 0 {
			all[pid] = strings.ReplaceAll(string(data), "\x00", " ")
		}
	}
	return all
}

// dump prints what a person would look at first.
func (n *Node) dump() {
	n.t.Logf("supervisor said:\n%s", tail(n.Output(), 6000))
	logs, _ := filepath.Glob(n.Place.Logs() + "/*.log")
	for _, file := range append(logs, n.Place.Run+"/runtime/monitor.log") {
		if data, err := os.ReadFile(file); err == nil {
			n.t.Logf("%s:\n%s", filepath.Base(file), tail(string(data), 4000))
		}
	}
}

func tail(s string, n int) string {
	if len(s) > n {
		return "[...]" + s[len(s)-n:]
	}
	return s
}

// KillAll ends the given processes with SIGKILL, all at once, the supervisor among them.
func (n *Node) KillAll(pids []int) {
	n.t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			n.t.Fatalf("kill %d: %v", pid, err)
		}
	}
	n.supervisor.Wait()
	n.Until("the killed processes to end", 5*time.Second, func() bool {
		for _, pid := range pids {
			if data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline"); err == nil && len(data) > 0 {
				return false
			}
		}
		return true
	})
}

// Relaunch starts the supervisor again with the same arguments.
func (n *Node) Relaunch() {
	n.t.Helper()
	n.launch(n.args)
	n.WaitNode()
}

// Dial connects from inside the node's network namespace, as a neighbour of the node would.
func (n *Node) Dial(address string) (conn net.Conn, err error) {
	enter := netns.Do(n.Place.Netns()+"/net", func() error {
		conn, err = net.DialTimeout("tcp4", address, Slow(5*time.Second))
		return err
	})
	return conn, enter
}
