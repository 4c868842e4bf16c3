//go:build bench

package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"worknode/test/harness"
)

// floor is the least that a container start can cost here: a clone into new namespaces, an overlay, a pivot of the root
// and the execution of a program that ends at once, done directly and once.
func floor(t *testing.T) time.Duration {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"lower/old", "upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, _, code := harness.Command(t, "/bin/cp", "/bin/busybox", filepath.Join(dir, "lower/true")); code != 0 {
		t.Fatal(out)
	}
	began := time.Now()
	cmd := exec.Command("/proc/self/exe", "floor-child", dir)
	cmd.Env = []string{"GOMAXPROCS=1", "GOGC=off"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return time.Since(began)
}

func floorChild(dir string) {
	must := func(err error) {
		if err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
	}
	must(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	must(syscall.Mount("overlay", dir+"/root", "overlay", 0, "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work"))
	must(syscall.Chdir(dir + "/root"))
	must(syscall.PivotRoot(".", "old"))
	must(syscall.Unmount("/old", syscall.MNT_DETACH))
	must(syscall.Exec("/true", []string{"true"}, nil))
}
