//go:build long

package oci

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"worknode/test/harness"
)

// TestLongContainerd: an upstream containerd with our executor as its shim's runc runs, executes in and removes a
// container. scripts/upstream builds containerd.
func TestLongContainerd(t *testing.T) {
	bin, err := filepath.Abs("../../.cache/upstream/bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "ctr")); err != nil {
		t.Fatalf("%v: run ./scripts/upstream", err)
	}
	dir, err := os.MkdirTemp("", "wnctr") // short: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ours := filepath.Join(dir, "worknode-oci")
	run(t, "../..", "go", "build", "-o", ours, "worknode/cmd/worknode-monitor")
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(filepath.Join(rootfs, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, ".", "cp", "/bin/busybox", filepath.Join(rootfs, "bin"))
	for _, applet := range []string{"sh", "sleep", "echo", "id"} {
		if err := os.Symlink("busybox", filepath.Join(rootfs, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "c.sock")
	config := filepath.Join(dir, "config.toml")
	text := "version = 3\nroot = '" + dir + "/root'\nstate = '" + dir + "/state'\ndisabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.runtime', 'io.containerd.cri.v1.images', 'io.containerd.nri.v1.nri']\n[grpc]\naddress = '" + socket + "'\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	engine := exec.Command(filepath.Join(bin, "containerd"), "--config", config)
	engine.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	engine.Stdout, engine.Stderr = &log, &log
	engine.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = engine.Process.Signal(syscall.SIGTERM)
		_ = engine.Wait()
		if t.Failed() {
			t.Logf("containerd:\n%s", log.Bytes())
		}
	}()
	deadline := time.Now().Add(harness.Slow(30 * time.Second))
	for {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("containerd does not answer: %v", err)
		}
		<-time.After(50 * time.Millisecond)
	}
	ctr := func(args ...string) (string, error) {
		cmd := exec.Command("timeout", append([]string{"60", filepath.Join(bin, "ctr"), "--address", socket}, args...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := ctr(args...)
		if err != nil {
			t.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	must("run", "--detach", "--runc-binary", ours, "--cgroup", "/wn-ctr-test/c1", "--rootfs", rootfs, "c1", "/bin/sleep", "1000")
	if out := must("tasks", "list"); !strings.Contains(out, "RUNNING") {
		t.Errorf("tasks: %s", out)
	}
	if out := must("tasks", "exec", "--exec-id", "e1", "c1", "/bin/sh", "-c", "echo from inside; id -u"); !strings.HasSuffix(out, "from inside\n0\n") { // containerd warns before it
		t.Errorf("exec: %q", out)
	}
	if _, err := ctr("tasks", "exec", "--exec-id", "e2", "c1", "/bin/sh", "-c", "exit 3"); err == nil {
		t.Error("the exec's exit code is lost")
	}
	must("tasks", "pause", "c1")
	if out := must("tasks", "list"); !strings.Contains(out, "PAUSED") {
		t.Errorf("tasks: %s", out)
	}
	must("tasks", "resume", "c1")
	if out := must("tasks", "ps", "c1"); strings.Count(out, "\n") < 2 {
		t.Errorf("ps: %s", out)
	}
	must("tasks", "kill", "--signal", "SIGKILL", "c1")
	for {
		if out := must("tasks", "list"); strings.Contains(out, "STOPPED") {
			break
		}
		if time.Now().After(deadline.Add(time.Minute)) {
			t.Fatal("the container does not stop")
		}
	}
	must("tasks", "delete", "c1")
	must("containers", "delete", "c1")
	if out, err := ctr("run", "--rm", "--runc-binary", ours, "--cgroup", "/wn-ctr-test/c2", "--rootfs", rootfs, "c2", "/bin/nosuch"); err == nil || !strings.Contains(out, "nosuch") {
		t.Errorf("%v %s, want the missing program's name", err, out)
	}
	if left, err := os.ReadDir(filepath.Join("/sys/fs/cgroup/memory/wn-ctr-test")); err == nil && len(left) > 0 {
		for _, e := range left {
			if e.IsDir() {
				t.Errorf("cgroup %s is left", e.Name())
			}
		}
	}
	for _, h := range []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "unified", "systemd", ""} {
		_ = os.Remove(filepath.Join("/sys/fs/cgroup", h, "wn-ctr-test"))
	}
}
