package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/kube"
	"worknode/test/harness"
)

// Two nodes on one machine know nothing of each other.
func TestTwoNodesSideBySide(t *testing.T) {
	a, b := start(t, harness.Config{Manifests: map[string]string{"a.yaml": daily}}), start(t, harness.Config{})
	pa := a.WaitReady("daily")
	b.Create(kube.Pods, pod("other", "exec /app wait"))
	pb := b.WaitReady("other")
	if out, _ := b.Worknode("ps"); strings.Contains(out, "daily") || !strings.Contains(out, "other") {
		t.Errorf("the second node's pods:\n%s", out)
	}
	if pa.Status.PodIP != pb.Status.PodIP {
		t.Logf("addresses %s and %s", pa.Status.PodIP, pb.Status.PodIP)
	}
	if out, code := try(t, b, "other", "/app dial tcp "+pa.Status.PodIP+":8080"); code == 0 {
		t.Errorf("a pod of one node reaches one of the other: %s", out)
	}
	b.Stop()
	for _, what := range b.Leftovers() {
		t.Errorf("left behind: %s", what)
	}
	if got := sh(t, a, "daily", "hostname"); got != "daily" {
		t.Errorf("after the neighbour's end: %q", got)
	}
	if c := container(a.WaitReady("daily"), "main"); c.RestartCount != 0 {
		t.Error("the neighbour's end restarted the pod")
	}
}

// A folder that changed while nobody watched is applied at the next start: changes, new files and removed ones.
func TestFolderChangesWhileDown(t *testing.T) {
	n := start(t, harness.Config{Manifests: map[string]string{
		"stays.yaml":   strings.Replace(good, "good", "stays", 1),
		"changes.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: changes}\ndata: {a: '1'}\n",
		"goes.yaml":    strings.Replace(good, "good", "goes", 1),
	}})
	was := n.WaitReady("stays")
	n.WaitReady("goes")
	n.Create(kube.Pods, pod("byhand", "exec /app wait")) // not the folder's: it is kept
	byhand := n.WaitReady("byhand")
	n.KillAll([]int{n.Pid("supervisor")})
	if err := os.Remove(n.Dir + "/goes.yaml"); err != nil {
		t.Fatal(err)
	}
	n.Write("changes.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: changes}\ndata: {a: '2'}\n")
	n.Write("new.yaml", strings.Replace(good, "good", "new", 1))
	n.Relaunch()
	n.WaitReady("new")
	n.WaitPod("goes", "gone", 10*time.Second, harness.Gone)
	n.Until("the change", 5*time.Second, func() bool {
		out, _, _ := n.Kubectl("get", "configmap", "changes", "-o", "jsonpath={.data.a}")
		return out == "2"
	})
	for _, p := range []*v1.Pod{was, byhand} {
		if now := n.WaitReady(p.Name); now.UID != p.UID || container(now, "main").ContainerID != container(p, "main").ContainerID {
			t.Errorf("%s is another pod now", p.Name)
		}
	}
}

// tmpfs mounts one of that size for the test.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wnt-disk-")
	if err != nil {
		t.Fatal(err)
	}
	if _, errs, code := harness.Command(t, "mount", "-t", "tmpfs", "-o", options, "worknode-test", dir); code != 0 {
		t.Fatal(errs)
	}
	t.Cleanup(func() {
		harness.Command(t, "umount", dir)
		os.Remove(dir)
	})
	return dir
}

func TestReadOnlyStateFolderIsTold(t *testing.T) {
	dir := tmpfs(t, "ro,size=1m")
	_, errs, code := harness.Command(t, harness.Binary(t, "worknode"), "run", "--isolated", "--root", dir, t.TempDir())
	if code == 0 || strings.Count(strings.TrimSpace(errs), "\n") > 0 || !strings.Contains(errs, dir) || !strings.Contains(errs, "read-only") || !strings.Contains(errs, "--root") {
		t.Errorf("exit code %d, said:\n%s", code, errs)
	}
}

// A disk that fills up while the node runs harms nothing that runs, is told, and is forgotten once there is room again.
func TestFullDiskIsSurvived(t *testing.T) {
	disk := tmpfs(t, "size=64m")
	n := start(t, harness.Config{Root: disk + "/r"})
	n.Create(kube.Pods, pod("steady", "exec /app serve"))
	was := n.WaitReady("steady")
	n.Until("the pod to answer", 5*time.Second, func() bool { got, _ := n.Ask(was.Status.PodIP + ":8080"); return got == "steady" })
	fill(t, disk+"/filler")
	if _, errs, code := n.Kubectl("run", "late", "--image="+image, "--command", "--", "/app", "wait"); code == 0 {
		event(t, n, "Failed", "late", "no space left on device")
	} else if !strings.Contains(errs, "no space left on device") || strings.Count(strings.TrimSpace(errs), "\n") > 0 {
		t.Errorf("exit code %d, said %s", code, errs)
	}
	if got, err := n.Ask(was.Status.PodIP + ":8080"); got != "steady" {
		t.Errorf("on a full disk the pod answers %q, %v", got, err)
	}
	if err := os.Remove(disk + "/filler"); err != nil {
		t.Fatal(err)
	}
	n.Until("a pod to be accepted again", 10*time.Second, func() bool {
		_, _, code := n.Kubectl("get", "pod", "late")
		if code != 0 {
			_, _, code = n.Kubectl("run", "late", "--image="+image, "--command", "--", "/app", "wait")
		}
		return code == 0
	})
	n.WaitPod("late", "ready", 60*time.Second, harness.Ready)
	logged(t, n, "late", "waiting") // a first process without a handler ignores SIGTERM, and would take its grace to end
	if now := n.WaitReady("steady"); container(now, "main").ContainerID != container(was, "main").ContainerID {
		t.Error("the pod was restarted")
	}
	for _, name := range []string{"runtime", "kubelet"} {
		if n.Pid(name) == 0 {
			t.Errorf("%s does not run", name)
		}
	}
}

// fill writes a file until the disk is full to the last byte.
func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for _, err = f.Write(make([]byte, size)); err == nil; _, err = f.Write(make([]byte, size)) {
		}
	}
}

// What the node's own processes write is short: no line a user did not cause, and none twice in a row.
func TestQuietNodeIsSilent(t *testing.T) {
	n := start(t, harness.Config{Manifests: map[string]string{"a.yaml": daily}})
	n.WaitReady("daily")
	sh(t, n, "daily", "true")
	kubectl(t, n, "exec", "daily", "--", "true")
	n.Delete(kube.Pods, "daily")
	n.WaitPod("daily", "made anew", 15*time.Second, harness.Ready)
	logs, _ := filepath.Glob(n.Place.Logs() + "/*.log")
	for _, file := range append(logs, n.Place.Run+"/runtime/monitor.log") {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			// This machine may lack the capability to lower an OOM score; that is told once.
			if !strings.HasPrefix(line, "time=") || (strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")) && !strings.Contains(line, "CAP_SYS_RESOURCE") {
				t.Errorf("%s: %s", filepath.Base(file), line)
			}
		}
	}
}
