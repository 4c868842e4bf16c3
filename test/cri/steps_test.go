package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kernel/mount"
	"worknode/kernel/netns"
	"worknode/kernel/pidfd"
	"worknode/step"
)

// walkSteps has this process, a runtime, kill itself at the step whose number is in the file kill, counted from the
// moment when that appears. Nothing runs after it: no deferred call, no signal handler.
func walkSteps(dir string) {
	var mu sync.Mutex
	count := 0
	step.Hook = func(mark string) {
		mu.Lock()
		defer mu.Unlock()
		text, err := os.ReadFile(filepath.Join(dir, "kill"))
		if err != nil {
			count = 0
			return
		}
		at, _ := strconv.Atoi(string(text))
		if count++; count != at {
			return
		}
		if err := os.WriteFile(filepath.Join(dir, "mark"), []byte(mark), 0o600); err != nil {
			panic(err)
		}
		if os.Remove(filepath.Join(dir, "kill")) != nil {
			return // the test has just taken it back
		}
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the kernel is about to end us
	}
}

// census is what of this node exists on the machine.
type census struct {
	mounts, folders, layers, records, groups, devices, processes, files int
}

func (n *node) census() census {
	n.t.Helper()
	glob := func(pattern string) int {
		all, err := filepath.Glob(filepath.Join(n.dir, pattern))
		if err != nil {
			n.t.Fatal(err)
		}
		return len(all)
	}
	mounts, err := mount.Below(n.dir)
	if err != nil {
		n.t.Fatal(err)
	}
	c := census{mounts: len(mounts), folders: glob("run/live/pods/*") + glob("root/cni/attachments/*.json"), layers: glob("root/containers/*"),
		records: glob("run/live/state/*/*") + glob("run/live/monitor/*")}
	for _, h := range []string{"memory", "cpu", "cpu,cpuacct", "pids", "unified", ""} {
		filepath.WalkDir(filepath.Join("/sys/fs/cgroup", h, "wn-test-"+filepath.Base(n.dir)), func(_ string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				c.groups++
			}
			return nil
		})
	}
	if err := n.inside(func() error {
		list, err := os.ReadDir("/proc/thread-self/net/dev_snmp6")
		c.devices = len(list)
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	monitor := n.monitorPid()
	if list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", monitor)); err == nil {
		for _, e := range list {
			// A pair of pipes for looking at others' comes and goes.
			if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", monitor, e.Name())); !strings.HasPrefix(to, "pipe:") {
				c.files++
			}
		}
	}
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if st, err := pidfd.ReadStat(pid); err == nil && st.PPid == monitor && monitor != 0 {
			c.processes++
		}
	}
	return c
}

// asleep counts the processes on this machine that run sleep with this argument.
func asleep(seconds int) (count int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range all {
		if line, err := os.ReadFile(file); err == nil && string(line) == fmt.Sprintf("sleep\x00%d\x00", seconds) {
			count++
		}
	}
	return count
}

// walk is one RPC under test and a life around it.
type walk struct {
	*node
	box            *cri.PodSandboxConfig
	config         *cri.ContainerConfig
	pod, container string
	seconds        int // what its process sleeps: names it
}

func (w *walk) runPod() error {
	r, err := w.cri.RunPodSandbox(w.ctx(), &cri.RunPodSandboxRequest{Config: w.box})
	if err == nil {
		w.pod = r.PodSandboxId
	}
	return err
}

func (w *walk) create() error {
	r, err := w.cri.CreateContainer(w.ctx(), &cri.CreateContainerRequest{PodSandboxId: w.pod, Config: w.config, SandboxConfig: w.box})
	if err == nil {
		w.container = r.ContainerId
	}
	return err
}

func (w *walk) startIt() error {
	_, err := w.cri.StartContainer(w.ctx(), &cri.StartContainerRequest{ContainerId: w.container})
	return err
}

func (w *walk) execIt() error {
	r, err := w.exec(w.container, 20, "echo", "fine")
	if err == nil && string(r.Stdout) != "fine\n" {
		err = fmt.Errorf("it said %q", r.Stdout)
	}
	return err
}

func (w *walk) stopIt() error {
	_, err := w.cri.StopContainer(w.ctx(), &cri.StopContainerRequest{ContainerId: w.container, Timeout: 20})
	return err
}

func (w *walk) removeIt() error {
	_, err := w.cri.RemoveContainer(w.ctx(), &cri.RemoveContainerRequest{ContainerId: w.container})
	return err
}

func (w *walk) stopPod() error {
	_, err := w.cri.StopPodSandbox(w.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: w.pod})
	return err
}

func (w *walk) deletePod() error {
	_, err := w.cri.RemovePodSandbox(w.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: w.pod})
	return err
}

// rpc is one step of a pod's life as a kubelet asks for it.
type rpc struct {
	name string
	do   func(*walk) error
	// check looks at what a success promises; nil for nothing more than the next ones do.
	check func(*walk)
}

var life = []rpc{
	{"RunPodSandbox", (*walk).runPod, (*walk).oneReadyPod},
	{"CreateContainer", (*walk).create, nil},
	{"StartContainer", (*walk).startIt, (*walk).runsOnce},
	{"ExecSync", (*walk).execIt, (*walk).runsOnce},
	{"StopContainer", (*walk).stopIt, (*walk).exitedWell},
	{"RemoveContainer", (*walk).removeIt, nil},
	{"StopPodSandbox", (*walk).stopPod, nil},
	{"RemovePodSandbox", (*walk).deletePod, nil},
}

// shortLife has the containers killed by their sandbox's end.
var shortLife = []rpc{life[0], life[1], life[2], life[6], life[7]}

// removal alone does all of it.
var removal = []rpc{life[0], life[1], life[2], life[7]}

func (w *walk) oneReadyPod() {
	list, err := w.cri.ListPodSandbox(w.ctx(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: map[string]string{"walk": w.box.Metadata.Name}}})
	if err != nil || len(list.Items) != 1 || list.Items[0].Id != w.pod || list.Items[0].State != cri.PodSandboxState_SANDBOX_READY {
		w.t.Errorf("sandboxes %v, %v", list, err)
	}
	if ips := w.podIPs(w.pod); ips[0] == "" {
		w.t.Error("the pod has no address")
	}
}

func (w *walk) runsOnce() {
	w.t.Helper()
	if s := w.status(w.container); s.State != cri.ContainerState_CONTAINER_RUNNING {
		w.t.Errorf("container %v", s)
	}
	// It may be a shell still, for a moment.
	w.until("the container's process", func() bool { return asleep(w.seconds) > 0 })
	if count := asleep(w.seconds); count != 1 {
		w.t.Errorf("%d processes of the container", count)
	}
}

func (w *walk) exitedWell() {
	if s := w.status(w.container); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 5 || s.Reason != "Error" {
		w.t.Errorf("after the stop: %v", s)
	}
}

// TestKilledAtEveryStep kills the runtime between any two effects of every call, starts it again, and repeats the call as a
// kubelet does: it must succeed then, what follows must work, and nothing may be left in the end. Issue 4, Bad input and faults.
func TestKilledAtEveryStep(t *testing.T) {
	n := newNode(t)
	serial := 0
	newWalk := func() *walk {
		serial++
		w := &walk{node: n, box: n.podConfig(), seconds: 100000 + os.Getpid()%1000*1000 + serial}
		w.box.Labels["walk"] = w.box.Metadata.Name
		w.box.PortMappings = []*cri.PortMapping{{HostPort: 8080, ContainerPort: 80}}
		// Its own pid namespace for the pod, so that the pod's init is part of the walk.
		w.box.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		w.config = config("main", fmt.Sprintf("trap 'kill -9 $p; exit 5' TERM; sleep %d & p=$!; wait", w.seconds))
		w.config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		return w
	}
	for _, l := range []struct {
		name  string
		calls []rpc
		from  int // the calls before it are walked elsewhere
	}{{"in order", life, 0}, {"stopped by its sandbox", shortLife, 3}, {"removed at once", removal, 3}} {
		t.Run(l.name, func(t *testing.T) {
			n.t = t
			// A whole life first, for what stays anyway: images, the root of the pods' init, devices of the bridge.
			for range 2 {
				w := newWalk()
				for _, c := range l.calls {
					if err := c.do(w); err != nil {
						t.Fatalf("%s: %v", c.name, err)
					}
				}
			}
			// At rest for a while: the kernel takes devices of an ended namespace away when it has time.
			var before census
			same := 0
			n.until("the node to be at rest", func() bool {
				last := before
				if before = n.census(); last != before {
					same = 0
				}
				same++
				return same > 40
			})
			for i, c := range l.calls {
				if i < l.from {
					continue
				}
				var marks []string
				for at := 1; ; at++ {
					w := newWalk()
					for _, c := range l.calls[:i] {
						if err := c.do(w); err != nil {
							t.Fatalf("%s before the kill in %s: %v", c.name, l.calls[i].name, err)
						}
					}
					mark := n.killAt(at, func() error { return c.do(w) })
					if mark != "" {
						marks = append(marks, mark)
						if err := c.do(w); err != nil {
							t.Fatalf("%s, killed after %q, repeated: %v", c.name, mark, err)
						}
					}
					if c.check != nil {
						c.check(w)
					}
					for _, c := range l.calls[i+1:] {
						if err := c.do(w); err != nil {
							t.Fatalf("%s after %s was killed after %q: %v", c.name, l.calls[i].name, mark, err)
						}
						if c.check != nil {
							c.check(w)
						}
					}
					var now census
					n.until("everything to be gone", func() bool { now = n.census(); return now == before || t.Failed() })
					if t.Failed() {
						t.Fatalf("%s killed after %q: census %+v, before %+v", c.name, mark, now, before)
					}
					if mark == "" {
						break
					}
				}
				t.Logf("%s: killed after each of %d steps: %s", c.name, len(marks), strings.Join(marks, ", "))
				if len(marks) == 0 {
					t.Errorf("%s has %d steps: the test shows nothing", c.name, len(marks))
				}
			}
		})
	}
	n.t = t
}

// killAt arms the kill at the given step, does something, and starts the runtime again if it was killed. It returns the
// step's mark, empty if there were fewer.
func (n *node) killAt(at int, do func() error) string {
	n.t.Helper()
	arm := filepath.Join(n.dir, "kill")
	if err := os.WriteFile(arm+".new", []byte(strconv.Itoa(at)), 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(arm+".new", arm); err != nil {
		n.t.Fatal(err)
	}
	failed := do()
	if os.Remove(arm) == nil { // nobody was killed
		if failed != nil {
			n.t.Fatalf("not killed, and yet: %v", failed)
		}
		return ""
	}
	n.cmd.Wait()
	mark, err := os.ReadFile(filepath.Join(n.dir, "mark"))
	if err != nil {
		n.t.Fatal(err)
	}
	n.start()
	return string(mark)
}

// CNI plugins: for every ADD that may have run there is a DEL, wherever between we die.
func TestEveryAddHasItsDel(t *testing.T) {
	l := newCNILab(t)
	l.write("net.d/10-fake.conflist", fakeConf)
	n := newNode(t)
	for _, c := range []struct {
		name string
		do   func(*walk) error
	}{{"RunPodSandbox", (*walk).runPod}, {"StopPodSandbox", (*walk).stopPod}, {"RemovePodSandbox", (*walk).deletePod}} {
		steps := 0
		for at := 1; ; at++ {
			w := &walk{node: n, box: n.podConfig()}
			if c.name != "RunPodSandbox" {
				if err := w.runPod(); err != nil {
					t.Fatal(err)
				}
			}
			mark := n.killAt(at, func() error { return c.do(w) })
			if mark == "" && c.name != "RunPodSandbox" {
				break
			}
			if c.name == "RunPodSandbox" {
				if err := w.runPod(); err != nil {
					t.Fatalf("killed after %q, repeated: %v", mark, err)
				}
				n.until("one address for one pod", func() bool { return l.taken() == 1 })
			}
			if err := w.deletePod(); err != nil {
				t.Fatalf("%s killed after %q: %v", c.name, mark, err)
			}
			n.until("all addresses to come back after a kill after "+mark, func() bool { return l.taken() == 0 })
			if mark == "" {
				break
			}
			steps++
		}
		if steps < 3 {
			t.Errorf("%s: only %d steps were found", c.name, steps)
		}
		t.Logf("%s: %d steps", c.name, steps)
	}
	calls, err := os.ReadFile(filepath.Join(l.dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	added, deleted := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(string(calls)) {
		switch command, id, _ := strings.Cut(strings.TrimSpace(line), " "); command {
		case "ADD":
			added[id] = true
		case "DEL":
			deleted[id] = true
		}
	}
	for id := range added {
		if !deleted[id] {
			t.Errorf("sandbox %s was added and never deleted", id)
		}
	}
	if len(added) == 0 {
		t.Error("no plugin ran")
	}
}

// inside runs fn in the node's network namespace.
func (n *node) inside(fn func() error) error { return netns.Do(n.netns(), fn) }
