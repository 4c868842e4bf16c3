package cri

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/test/harness"
)

// nriPlugin is a plugin made of upstream's own library (test/upstream/nri), in a process of its own.
type nriPlugin struct {
	n    *node
	name string // 10-a
	dir  string
	cmd  *exec.Cmd
	end  chan struct{}
}

// note is a line of what a plugin was told.
type note struct {
	Event string
	Pod   struct {
		ID, Name, UID, Namespace string
		Labels, Annotations      map[string]string
		IPs                      []string `json:"ips"`
	}
	Container struct {
		ID, Name    string
		State       int
		Pid         int
		Args, Env   []string
		Annotations map[string]string
		ExitCode    int `json:"exit_code"`
		Mounts      []struct{ Destination string }
		Linux       struct {
			CgroupsPath string `json:"cgroups_path"`
			Resources   struct {
				CPU struct{ Shares struct{ Value uint64 } }
			}
		}
	}
	Resources struct {
		CPU struct{ Shares struct{ Value uint64 } }
	}
	Pods, Containers []string
	Text             string
}

var nriBuild sync.Once

// nriBinary is the plugin's program; a machine without a Go compiler brings it along.
func nriBinary(t *testing.T) string {
	t.Helper()
	if file := os.Getenv("WORKNODE_NRI_PLUGIN"); file != "" {
		return file
	}
	file := filepath.Join(filepath.Dir(imageTar), "nri-plugin")
	nriBuild.Do(func() {
		cmd := exec.Command("go", "build", "-o", file, ".")
		cmd.Dir, cmd.Env = filepath.Join(harness.Top(), "test/upstream/nri"), append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the NRI plugin: %v\n%s", err, out)
		}
	})
	return file
}

// plugin starts a plugin and waits until it has joined. do are orders: file name and content.
func (n *node) plugin(name string, do map[string]string, args ...string) *nriPlugin {
	n.t.Helper()
	p := n.newPlugin(name, do, args...)
	n.until("plugin "+name+" to join", func() bool { return n.logged(`msg="NRI plugin joined" plugin=`+name) > 0 })
	return p
}

func (n *node) newPlugin(name string, do map[string]string, args ...string) *nriPlugin {
	n.t.Helper()
	p := &nriPlugin{n: n, name: name, dir: filepath.Join(n.dir, "plugin-"+name), end: make(chan struct{})}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	for file, text := range do {
		p.order(file, text)
	}
	index, base, _ := strings.Cut(name, "-")
	p.cmd = exec.Command(nriBinary(n.t), append([]string{"--dir", p.dir, "--name", base, "--idx", index, "--socket", filepath.Join(n.dir, "run", "nri.sock")}, args...)...)
	out := &bytes.Buffer{}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.end)
	}()
	n.t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.end
		if n.t.Failed() {
			n.t.Logf("plugin %s:\n%s", name, out)
		}
	})
	return p
}

// order gives the plugin a file, or takes it away.
func (p *nriPlugin) order(file, text string) {
	p.n.t.Helper()
	file = filepath.Join(p.dir, file)
	err := os.Remove(file)
	if text != "" {
		if err = os.WriteFile(file+".new", []byte(text), 0o644); err == nil {
			err = os.Rename(file+".new", file)
		}
	}
	if err != nil && !os.IsNotExist(err) {
		p.n.t.Fatal(err)
	}
}

func (p *nriPlugin) notes() []note {
	p.n.t.Helper()
	text, _ := os.ReadFile(filepath.Join(p.dir, "log"))
	var out []note
	for line := range strings.Lines(string(text)) {
		var v note
		if !strings.HasSuffix(line, "\n") {
			break // being written
		}
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			p.n.t.Fatalf("%v: %s", err, line)
		}
		out = append(out, v)
	}
	return out
}

// events are the names of what the plugin was told, containers and pods named.
func (p *nriPlugin) events() []string {
	var out []string
	for _, v := range p.notes() {
		out = append(out, strings.TrimSpace(v.Event+" "+v.Container.Name))
	}
	return out
}

// wait waits for an event and returns the last of that name.
func (p *nriPlugin) wait(event string) note {
	p.n.t.Helper()
	var found note
	p.n.until(p.name+" to hear of "+event, func() bool {
		for _, v := range p.notes() {
			if strings.TrimSpace(v.Event+" "+v.Container.Name) == event {
				found = v
			}
		}
		return found.Event != ""
	})
	return found
}

// logged counts lines of the runtime's log that contain text.
func (n *node) logged(text string) int {
	log, _ := os.ReadFile(filepath.Join(n.dir, "runtime.log"))
	return strings.Count(string(log), text)
}

// The whole life of a pod as a plugin sees it, in order, once each.
func TestNRILife(t *testing.T) {
	n := newNode(t)
	p := n.plugin("10-a", nil)
	box := n.podConfig()
	pod := n.runPod(box)
	c := config("c", "sleep 1000")
	c.Annotations = map[string]string{"k": "v"}
	c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 100}
	id := n.run(pod, box, c)
	update := &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{CpuShares: 200}}
	if _, err := n.cri.UpdateContainerResources(n.ctx(), update); err != nil {
		t.Fatal(err)
	}
	if _, err := n.cri.UpdatePodSandboxResources(n.ctx(), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &cri.LinuxContainerResources{CpuShares: 300}}); err != nil {
		t.Fatal(err)
	}
	short := n.run(pod, box, config("short", "exit 7"))
	n.exited(short)
	p.wait("StopContainer short")
	for range 2 {
		if _, err := n.cri.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := n.cri.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
	}
	p.wait("RemovePodSandbox")
	got := p.events()
	life := func(name string) []string {
		return []string{"CreateContainer " + name, "PostCreateContainer " + name, "StartContainer " + name, "PostStartContainer " + name}
	}
	want := slices.Concat([]string{"Configure", "Synchronize", "RunPodSandbox"}, life("c"),
		[]string{"UpdateContainer c", "PostUpdateContainer c", "UpdatePodSandbox", "PostUpdatePodSandbox"}, life("short"),
		[]string{"StopContainer short", "StopContainer c", "StopPodSandbox"})
	if len(got) != len(want)+3 || !slices.Equal(got[:len(want)], want) {
		t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	rest := got[len(want):]
	slices.Sort(rest[:2]) // the containers go in no order
	if !slices.Equal(rest, []string{"RemoveContainer c", "RemoveContainer short", "RemovePodSandbox"}) {
		t.Errorf("at the end: %v", rest)
	}
	v := p.wait("RunPodSandbox")
	if v.Pod.ID != pod || v.Pod.Name != "pod1" || v.Pod.Namespace != "test" || v.Pod.UID != "uid1" || v.Pod.Labels["app"] != "test" || len(v.Pod.IPs) != 1 {
		t.Errorf("pod: %+v", v.Pod)
	}
	if v = p.wait("CreateContainer c"); v.Container.ID != id || v.Container.Args[2] != "sleep 1000" || v.Container.Annotations["k"] != "v" ||
		v.Container.Linux.Resources.CPU.Shares.Value != 100 || !slices.Contains(v.Container.Env, "FROM_IMAGE=yes") || v.Container.State != 1 || len(v.Container.Mounts) < 5 {
		t.Errorf("container: %+v", v.Container)
	}
	if v = p.wait("UpdateContainer c"); v.Resources.CPU.Shares.Value != 200 {
		t.Errorf("update: %+v", v.Resources)
	}
	if v = p.wait("PostStartContainer c"); v.Container.Pid == 0 || v.Container.State != 3 {
		t.Errorf("started: %+v", v.Container)
	}
	if v = p.wait("StopContainer short"); v.Container.ExitCode != 7 || v.Container.State != 4 {
		t.Errorf("ended: %+v", v.Container)
	}
}

// What plugins want of a container is what it gets, in an exec and after a restart too; a second plugin sees what the
// first has changed, and the validator sees who wants what.
func TestNRIAdjust(t *testing.T) {
	n := newNode(t)
	data := filepath.Join(n.dir, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "file"), []byte("from nri\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.cdiSpec("cdi", "x.json", `{"cdiVersion": "0.6.0", "kind": "acme.example/x", "devices": [{"name": "y", "containerEdits": {"env": ["CDI=yes"]}}]}`)
	n.plugin("10-a", map[string]string{"adjust.json": `{
		"annotations": {"from": "nri"}, "args": ["sh", "-c", "sleep 2000"],
		"env": [{"key": "NRI", "value": "1"}, {"key": "-FROM_IMAGE"}], "CDI_devices": [{"name": "acme.example/x=y"}],
		"mounts": [{"destination": "/nri", "source": "` + data + `", "type": "bind", "options": ["rbind", "ro"]}, {"destination": "-/dev/mqueue"}],
		"rlimits": [{"type": "RLIMIT_NOFILE", "hard": 200, "soft": 100}],
		"linux": {"devices": [{"path": "/dev/nri", "type": "c", "major": 1, "minor": 7}], "oom_score_adj": {"value": 321},
			"io_priority": {"class": 2, "priority": 6}, "scheduler": {"policy": 4, "nice": 5},
			"resources": {"memory": {"limit": {"value": 50000000}}, "cpu": {"shares": {"value": 77}}, "pids": {"limit": 55}}}}`})
	late := n.plugin("20-b", nil, "--validate")
	box := n.podConfig()
	pod := n.runPod(box)
	c := config("c", "sleep 1000")
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 90_000_000, CpuPeriod: 100_000}
	id := n.run(pod, box, c)
	script := `cat /proc/1/cmdline | head -c 16 | grep -o 2000; echo $NRI $CDI "$FROM_IMAGE"; cat /nri/file; (touch /nri/x) 2>/dev/null; echo $?
		ls -d /dev/mqueue 2>/dev/null; (echo x >/dev/nri) 2>&1 | grep -o 'No space left'; ulimit -n; cat /proc/1/oom_score_adj; set -- $(cat /proc/1/stat); echo nice ${19} policy ${41}`
	want := "2000\n1 yes \nfrom nri\n1\nNo space left\n100\n321\nnice 5 policy 3\n"
	for _, when := range []string{"at first", "after a restart"} {
		if got := n.sh(id, script); got != want {
			t.Errorf("%s got\n%s\nwant\n%s", when, got, want)
		}
		n.killRuntime()
		n.start()
	}
	r := n.status(id).Resources.Linux
	if r.MemoryLimitInBytes != 50_000_000 || r.CpuShares != 77 || r.CpuPeriod != 100_000 {
		t.Errorf("status: %v", r)
	}
	v := late.wait("CreateContainer c")
	if v.Container.Args[2] != "sleep 2000" || !slices.Contains(v.Container.Env, "NRI=1") || slices.Contains(v.Container.Env, "FROM_IMAGE=yes") || v.Container.Linux.Resources.CPU.Shares.Value != 77 {
		t.Errorf("the second plugin sees %+v", v.Container)
	}
	v = late.wait("ValidateContainerAdjustment c")
	if v.Container.Args[2] != "sleep 1000" || !strings.Contains(v.Text, `"Env NRI":"10-a"`) {
		t.Errorf("the validator sees %+v", v)
	}
}

// Refusals, conflicts and what is not possible fail the request, say who did it, and leave nothing.
func TestNRIRefusals(t *testing.T) {
	n := newNode(t)
	a, b := n.plugin("10-a", nil), n.plugin("20-b", nil, "--validate")
	box := n.podConfig()
	pod := n.runPod(box)
	for name, row := range map[string]struct {
		a, b map[string]string
		want string
	}{
		"refused":     {map[string]string{"CreateContainer": "not today"}, nil, "10-a: CreateContainer: not today"},
		"conflict":    {map[string]string{"adjust.json": `{"env": [{"key": "X", "value": "1"}]}`}, map[string]string{"adjust.json": `{"env": [{"key": "X", "value": "2"}]}`}, "10-a and 20-b both set variable X"},
		"not allowed": {nil, map[string]string{"ValidateContainerAdjustment": "too much"}, "NRI validator 20-b is against the container's adjustment: too much"},
		"impossible":  {map[string]string{"adjust.json": `{"linux": {"resources": {"rdt_class": {"value": "gold"}}}}`}, nil, "RDT"},
		"no device":   {map[string]string{"adjust.json": `{"CDI_devices": [{"name": "acme.example/none=0"}]}`}, nil, "acme.example/none=0"},
	} {
		for file, text := range row.a {
			a.order(file, text)
		}
		for file, text := range row.b {
			b.order(file, text)
		}
		_, err := n.cri.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: config("c", "true"), SandboxConfig: box})
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q in it", name, err, row.want)
		}
		for file := range row.a {
			a.order(file, "")
		}
		for file := range row.b {
			b.order(file, "")
		}
	}
	if l, err := n.cri.ListContainers(n.ctx(), &cri.ListContainersRequest{}); err != nil || len(l.Containers) > 0 {
		t.Errorf("left behind: %v %v", l, err)
	}
	// Who was told of a creation is told of its end.
	if got := a.events(); strings.Count(strings.Join(got, "\n"), "\nCreateContainer") != strings.Count(strings.Join(got, "\n"), "\nRemoveContainer") {
		t.Errorf("%v", got)
	}
	a.order("StartContainer", "no")
	id := n.create(pod, box, config("start", "true"))
	if _, err := n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id}); err == nil || !strings.Contains(err.Error(), "10-a: StartContainer: no") {
		t.Errorf("start: %v", err)
	}
	if s := n.status(id); s.State != cri.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" {
		t.Errorf("after a refused start: %v", s)
	}
	a.order("RunPodSandbox", "no pods")
	other := n.podConfig()
	if _, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: other}); err == nil || !strings.Contains(err.Error(), "no pods") {
		t.Errorf("pod: %v", err)
	}
	a.order("RunPodSandbox", "")
	n.runPod(other) // the addresses and names are free again
}

// Plugins change containers that exist: in answer to a creation, an update, an end, and of their own.
func TestNRIUpdates(t *testing.T) {
	n := newNode(t)
	p := n.plugin("10-a", nil)
	box := n.podConfig()
	pod := n.runPod(box)
	first := n.run(pod, box, config("first", "sleep 1000"))
	shares := func(id string, v int) string {
		return fmt.Sprintf(`{"container_id": %q, "linux": {"resources": {"cpu": {"shares": {"value": %d}}}}}`, id, v)
	}
	is := func(id string, v int64) func() bool {
		return func() bool { return n.status(id).GetResources().GetLinux().GetCpuShares() == v }
	}
	p.order("update-create.json", "["+shares(first, 111)+"]")
	second := n.run(pod, box, config("second", "sleep 1000"))
	if !is(first, 111)() {
		t.Errorf("a creation's update is not done when the creation is: %v", n.status(first).Resources)
	}
	p.order("update-create.json", "")
	p.order("update.json", "["+shares(first, 222)+","+shares(second, 333)+"]")
	if _, err := n.cri.UpdateContainerResources(n.ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: second, Linux: &cri.LinuxContainerResources{CpuShares: 50, CpuPeriod: 50_000}}); err != nil {
		t.Fatal(err)
	}
	if !is(first, 222)() || !is(second, 333)() || n.status(second).Resources.Linux.CpuPeriod != 50_000 {
		t.Errorf("after an update: %v, %v", n.status(first).Resources, n.status(second).Resources)
	}
	p.order("update-stop.json", "["+shares(first, 444)+"]")
	if _, err := n.cri.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: second}); err != nil {
		t.Fatal(err)
	}
	n.until("update after an end", is(first, 444))
	p.order("unsolicited.json", "["+shares(first, 555)+","+shares("unknown", 1)+"]")
	if v := p.wait("Unsolicited"); v.Text != "0 failed" || !is(first, 555)() {
		t.Errorf("unsolicited: %s, %v", v.Text, n.status(first).Resources)
	}
	n.plugin("20-late", map[string]string{"update-sync.json": "[" + shares(first, 666) + "]"})
	n.until("update after a synchronisation", is(first, 666))
}

// A plugin that hangs is dropped after its time, one that dies at once; the requests go on without them.
func TestNRISilence(t *testing.T) {
	n := newNode(t)
	n.extra = []string{"WORKNODE_TEST_NRI_TIMEOUT=300ms"}
	n.killRuntime()
	n.start()
	hang, crash := n.plugin("10-hang", map[string]string{"CreateContainer": "hang"}), n.plugin("20-crash", map[string]string{"StartContainer": "crash"})
	other := n.plugin("30-other", nil)
	box := n.podConfig()
	pod := n.runPod(box)
	began := time.Now()
	id := n.run(pod, box, config("c", "sleep 1000"))
	if took := time.Since(began); took > harness.Slow(3*time.Second) {
		t.Errorf("two silent plugins cost %v", took)
	}
	for _, p := range []*nriPlugin{hang, crash} {
		select {
		case <-p.end:
		case <-time.After(harness.Slow(10 * time.Second)):
			t.Errorf("plugin %s was not dropped", p.name)
		}
	}
	other.wait("PostStartContainer c")
	if s := n.status(id); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("%v", s)
	}
}

// Whatever is being made while a plugin joins reaches it: by synchronisation or by event, and once.
func TestNRILateJoiners(t *testing.T) {
	n := newNode(t)
	n.plugin("10-a", nil)
	box := n.podConfig()
	pod := n.runPod(box)
	const many = 40
	var creating sync.WaitGroup
	for i := range 4 {
		creating.Go(func() {
			for j := range many / 4 {
				c := config(fmt.Sprintf("c%d", i*many/4+j), "sleep 1000")
				if _, err := n.cri.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: box}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var late []*nriPlugin
	for i := range 5 {
		late = append(late, n.plugin(fmt.Sprintf("2%d-late", i), nil))
	}
	creating.Wait()
	n.create(pod, box, config("last", "sleep 1000"))
	for _, p := range late {
		p.wait("PostCreateContainer last")
		seen := map[string]int{}
		for _, v := range p.notes() {
			for _, name := range v.Containers {
				seen[name]++
			}
			if v.Event == "CreateContainer" {
				seen[v.Container.Name]++
			}
		}
		for i := range many {
			if name := fmt.Sprintf("c%d", i); seen[name] != 1 {
				t.Errorf("plugin %s has heard %d times of %s", p.name, seen[name], name)
			}
		}
	}
}

// Installed plugins are there before the first request, told their configuration, and again after a restart; what is no
// plugin is left out.
func TestNRIInstalled(t *testing.T) {
	n := newNode(t)
	plugins, conf := filepath.Join(n.dir, "nri-plugins"), filepath.Join(n.dir, "nri-conf")
	for _, dir := range []string{plugins, conf, filepath.Join(plugins, "05-good.d")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(nriBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string][]byte{"05-good": program, "nonsense": []byte("#!/bin/sh\nexit 1\n"), "07-bad": []byte("#!/bin/sh\nexit 1\n"), "08-wasm": []byte("\x00asm\x01\x00\x00\x00")} {
		if err := os.WriteFile(filepath.Join(plugins, file), text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(conf, "good.conf"), []byte("told"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.extra = []string{"WORKNODE_TEST_NRI_PLUGINS=" + plugins, "WORKNODE_TEST_NRI_CONF=" + conf}
	n.killRuntime()
	n.start()
	p := &nriPlugin{n: n, name: "05-good", dir: filepath.Join(plugins, "05-good.d")}
	if v := p.wait("Configure"); v.Text != "told worknode" {
		t.Errorf("configured with %q", v.Text)
	}
	box := n.podConfig()
	pod := n.runPod(box)
	p.wait("RunPodSandbox")
	for _, name := range []string{"nonsense", "07-bad", "08-wasm"} {
		if n.logged(`msg="installed NRI plugin is left out" plugin=`+name) != 1 {
			t.Errorf("no word of %s", name)
		}
	}
	n.killRuntime()
	n.start()
	n.until("second synchronisation", func() bool {
		count := 0
		for _, v := range p.notes() {
			if v.Event == "Synchronize" && slices.Contains(v.Pods, "pod1") {
				count++
			}
		}
		return count == 1
	})
	_ = pod
}
