package store

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/test/harness"
)

type checked struct{ Name, State, Says, Remedy string }

func runCheck(t *testing.T, args ...string) (out map[string]checked, code int) {
	t.Helper()
	cmd := exec.Command(harness.Binary(t, "worknode"), append([]string{"check", "-o", "json"}, args...)...)
	data, err := cmd.Output()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	var list []checked
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	out = map[string]checked{}
	for _, r := range list {
		if r.State != "ok" && r.Says == "" {
			t.Errorf("%s says nothing", r.Name)
		}
		out[r.Name+" "+r.State] = r
	}
	return out, cmd.ProcessState.ExitCode()
}

func TestCheckSaysWhatThisMachineLacks(t *testing.T) {
	dir := t.TempDir()
	root, conf := filepath.Join(dir, "root"), filepath.Join(dir, "net.d")
	for _, d := range []string{root, conf} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(conf, "10.conflist"), []byte(`{"name":"n","plugins":[{"type":"nosuch"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	// This namespace of ours has forwarding off.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, code := runCheck(t, "--image-root", root, "--cni-conf-dir", conf)
	if code != 0 {
		t.Errorf("a machine that runs these tests fails: %v", got)
	}
	if r := got["cni warn"]; !strings.Contains(r.Says, "nosuch") || r.Remedy == "" {
		t.Errorf("a plugin that is missing: %+v", r)
	}
	if r := got["sysctl warn"]; !strings.Contains(r.Remedy, "net.ipv4.ip_forward=1") {
		t.Errorf("forwarding is off: %+v", r)
	}
	if r := got["image folder ok"]; !strings.Contains(r.Says, root) {
		t.Errorf("a good folder: %+v", got)
	}
	mountTmpfs(t, root, "")
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	got, code = runCheck(t, "--image-root", filepath.Join(root, "later"), "--cni-conf-dir", "")
	if r := got["image folder fail"]; code != 1 || !strings.Contains(r.Says, root) || r.Remedy == "" {
		t.Errorf("a folder that cannot be written: exit %d, %+v", code, got)
	}
	left, err := filepath.Glob(filepath.Join(dir, "root", ".worknode-check-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("the check left %v (%v)", left, err)
	}
}
