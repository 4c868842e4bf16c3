package cri

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// handlers are the OCI runtimes that the tests run containers with: scripts/upstream builds them.
func handlers(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range []string{"runc", "crun"} {
		path, err := filepath.Abs("../../.cache/upstream/bin/" + name)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			t.Skipf("%v (run ./scripts/upstream)", err)
		}
		out[name] = path
	}
	// crun 1.8 refuses a machine with both versions of cgroups, so it must not see one of them.
	script := filepath.Join(t.TempDir(), "crun")
	text := "#!/bin/sh\nexec unshare -m sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$0\" \"$@\"' " + out["crun"] + " \"$@\"\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	out["crun"] = script
	return out
}

// newHandlerNode is a node with those handlers, one that hangs and one that is not there.
func newHandlerNode(t *testing.T) *node {
	t.Helper()
	found := handlers(t)
	hang := filepath.Join(t.TempDir(), "hang")
	if err := os.WriteFile(hang, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return newNodeWith(t, "WORKNODE_TEST_HANDLERS=runc="+found["runc"]+" crun="+found["crun"]+" hang="+hang+" absent=/nonexistent/runc")
}

func (n *node) runPodWith(config *cri.PodSandboxConfig, handler string) string {
	n.t.Helper()
	r, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.PodSandboxId
}

// list is what a handler itself knows, to see that it was the one that made a container, and that nothing stays with it.
func (n *node) list(handler string) string {
	n.t.Helper()
	out, err := exec.Command(handlers(n.t)[handler], "--root", filepath.Join(n.dir, "run/live/handlers", handler), "list", "-q").CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s list: %v %s", handler, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestHandlers(t *testing.T) {
	n := newHandlerNode(t)
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) { n.handled(t, name) })
	}
	t.Run("unknown", func(t *testing.T) {
		_, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.podConfig(), RuntimeHandler: "kata"})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "kata") {
			t.Errorf("%v, want a refusal that names the handler", err)
		}
	})
	t.Run("absent", func(t *testing.T) {
		box := n.podConfig()
		id := n.create(n.runPodWith(box, "absent"), box, config("c", "true"))
		_, err := n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
		if err == nil || !strings.Contains(err.Error(), "/nonexistent/runc") {
			t.Errorf("%v, want the missing program's name", err)
		}
	})
	t.Run("hanging", func(t *testing.T) {
		box := n.podConfig()
		pod := n.runPodWith(box, "hang")
		id := n.create(pod, box, config("c", "true"))
		_, err := n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
		if err == nil || !strings.Contains(err.Error(), "longer than") {
			t.Errorf("%v, want that it takes too long", err)
		}
		if _, err := n.cri.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Errorf("not removed: %v", err)
		}
	})
	t.Run("features", func(t *testing.T) {
		n.until("the handlers' features", func() bool {
			r, err := n.cri.Status(n.ctx(), &cri.StatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			rro := map[string]bool{}
			for _, h := range r.RuntimeHandlers {
				rro[h.Name] = h.Features.RecursiveReadOnlyMounts
			}
			return len(rro) == 5 && rro[""] && rro["runc"] && !rro["absent"]
		})
	})
}

// handled is a container's life with another handler.
func (n *node) handled(t *testing.T, name string) {
	was := n.t
	n.t = t
	defer func() { n.t = was }()
	box := n.podConfig()
	pod := n.runPodWith(box, name)
	c := config("c", `echo out; echo err >&2; hostname; trap 'exit 7' TERM; while :; do usleep 10000; done`)
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}
	id := n.run(pod, box, c)
	if got := n.list(name); got != id {
		t.Errorf("%s knows %q, want %s", name, got, id)
	}
	n.until("output", func() bool { return strings.Contains(readLog(t, n.status(id).LogPath), box.Hostname) })
	if got := readLog(t, n.status(id).LogPath); !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") {
		t.Errorf("log: %q", got)
	}
	if got := n.sh(id, "echo $FROM_IMAGE; id -u; hostname"); got != "yes\n0\n"+box.Hostname+"\n" {
		t.Errorf("exec: %q", got)
	}
	if r, err := n.exec(id, 10, "sh", "-c", "echo no >&2; exit 5"); err != nil || r.ExitCode != 5 || string(r.Stderr) != "no\n" {
		t.Errorf("exec's code and stderr: %v %v", r, err)
	}
	if _, err := n.exec(id, 10, "nosuch"); err == nil {
		t.Error("a program that is not there was executed")
	}
	if s, err := n.cri.ContainerStats(n.ctx(), &cri.ContainerStatsRequest{ContainerId: id}); err != nil || s.Stats.Memory.UsageBytes.GetValue() == 0 {
		t.Errorf("stats: %v %v", s, err)
	}

	n.killRuntime()
	n.start()
	if got := n.sh(id, "echo alive"); got != "alive\n" {
		t.Errorf("exec after a restart: %q", got)
	}
	if _, err := n.cri.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
		t.Fatal(err)
	}
	if s := n.status(id); s.ExitCode != 7 {
		t.Errorf("exit code %d, want the one of its trap, 7", s.ExitCode)
	}
	n.until("the handler to forget it", func() bool { return n.list(name) == "" })

	if s := n.exited(n.run(pod, box, config("code", "exit 42"))); s.ExitCode != 42 {
		t.Errorf("exit code %d, want 42", s.ExitCode)
	}
	hungry := config("oom", "cat /dev/zero | tail")
	hungry.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	if s := n.exited(n.run(pod, box, hungry)); s.Reason != "OOMKilled" {
		t.Errorf("reason %s, want OOMKilled", s.Reason)
	}
	tty := config("tty", "tty; stty size")
	tty.Tty = true
	if got := n.output(pod, box, tty); !strings.Contains(got, "/dev/pts/0") && !strings.Contains(got, "/dev/console") {
		t.Errorf("terminal: %q", got)
	}
	missing := config("missing", "")
	missing.Command = []string{"/nosuch"}
	bad := n.create(pod, box, missing)
	if _, err := n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: bad}); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("%v, want the missing program's name", err)
	}

	last := n.run(pod, box, config("last", "sleep 1000"))
	n.killRuntime()
	n.start()
	if _, err := n.cri.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if got := n.list(name); got != "" {
		t.Errorf("%s still knows %s (last was %s)", name, got, last)
	}
	if left, err := os.ReadDir(filepath.Join(n.dir, "run/live/foreign")); err != nil || len(left) > 0 {
		t.Errorf("bundles left: %v %v", left, err)
	}
}
