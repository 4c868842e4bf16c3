// Package oci judges the executor's command line by what others have written: the validation programs of
// opencontainers/runtime-tools, one subtest each. They are built from the Go module proxy (test/upstream/runtimetools).
// WORKNODE_TEST_OCI_RUNTIME names another runtime to judge instead, for comparison; exceptions are then those of ours.
package oci

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"worknode/kernel/mount"
	"worknode/test/harness"
)

const module = "github.com/opencontainers/runtime-tools"

// limit bounds one program; they wait in steps of a second.
const limit = 90 * time.Second

// TestMain lets many programs run at once: they mostly wait.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "12"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func TestValidation(t *testing.T) {
	lab := newLab(t)
	alone, together := lab.programs()
	t.Run("together", func(t *testing.T) {
		for _, name := range together {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				lab.judge(t, name)
			})
		}
	})
	for _, name := range alone {
		t.Run(name, func(t *testing.T) { lab.judge(t, name) })
	}
}

// lab is where the programs lie, and what they expect to find beside them.
type lab struct {
	dir     string
	runtime string
	bundles string // where the programs make them
	names   []string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("containers need root: run the test with sudo")
	}
	l := &lab{dir: t.TempDir()}
	upstream, err := filepath.Abs("../upstream/runtimetools")
	if err != nil {
		t.Fatal(err)
	}
	// Static: runtimetest runs in a root filesystem without libraries.
	run(t, upstream, "go", "build", "-o", l.dir+"/", module+"/cmd/runtimetest")
	source := strings.TrimSpace(string(run(t, upstream, "go", "list", "-m", "-f", "{{.Dir}}", module)))
	folders, err := filepath.Glob(filepath.Join(source, "validation", "*"))
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"build", "-o", l.dir + "/"}
	for _, f := range folders {
		if name := filepath.Base(f); name != "util" && !strings.HasPrefix(name, ".") {
			l.names = append(l.names, name)
			args = append(args, module+"/validation/"+name)
		}
	}
	if len(l.names) < 50 {
		t.Fatalf("only %d validation programs in %s", len(l.names), source)
	}
	run(t, upstream, "go", args...)
	rootfs := "rootfs-" + runtime.GOARCH + ".tar.gz"
	data, err := os.ReadFile(filepath.Join(source, rootfs))
	if err == nil {
		err = os.WriteFile(filepath.Join(l.dir, rootfs), data, 0o644)
	}
	if err != nil {
		t.Skipf("the suite brings no root filesystem for this architecture: %v", err)
	}
	if l.runtime = os.Getenv("WORKNODE_TEST_OCI_RUNTIME"); l.runtime == "" {
		l.runtime = filepath.Join(t.TempDir(), "worknode-oci")
		run(t, "../..", "go", "build", "-o", l.runtime, "worknode/cmd/worknode-monitor")
	}
	l.private(t)
	return l
}

// private gives the runtime records of its own, below the folder that the test's end removes, and deletes what programs
// leave behind: one that fails ends without cleaning up.
func (l *lab) private(t *testing.T) {
	t.Helper()
	program, root := l.runtime, t.TempDir()
	l.runtime = filepath.Join(l.dir, "runtime")
	script := "#!/bin/sh\nexec " + program + " --root " + root + " \"$@\"\n"
	if err := os.WriteFile(l.runtime, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if l.bundles, err = os.MkdirTemp("", "wn-oci-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, id := range strings.Fields(string(run(t, ".", l.runtime, "list", "-q"))) {
			t.Logf("a program left container %s", id)
			run(t, ".", l.runtime, "delete", "--force", id)
		}
		// Never remove a folder that something is mounted in: a container without a mount namespace has the host's /sys there.
		left, err := mount.Below(l.bundles)
		if err != nil || len(left) > 0 {
			t.Errorf("mounts left: %v %v", left, err)
			return
		}
		if err := os.RemoveAll(l.bundles); err != nil {
			t.Error(err)
		}
	})
}

func run(t *testing.T, dir, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, said.Bytes())
	}
	return out
}

// programs splits them: those that use one cgroup's name run one after the other.
func (l *lab) programs() (alone, together []string) {
	for _, n := range l.names {
		if strings.HasPrefix(n, "linux_cgroups_") || strings.HasPrefix(n, "delete_") {
			alone = append(alone, n)
		} else {
			together = append(together, n)
		}
	}
	return alone, together
}

// verdict is what a program found.
type verdict struct {
	passed int
	failed []string // descriptions of test points, errors, bad ends
	said   string
}

func (l *lab) run(t *testing.T, name string) verdict {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), harness.Slow(limit))
	defer stop()
	cmd := exec.CommandContext(ctx, filepath.Join(l.dir, name))
	cmd.Dir, cmd.Env = l.dir, append(os.Environ(), "RUNTIME="+l.runtime, "TMPDIR="+l.bundles)
	cmd.WaitDelay = time.Second
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	v := read(out.String())
	if err != nil {
		v.failed = append(v.failed, "exit: "+strings.TrimSpace(said.String())+": "+err.Error())
	}
	v.said = out.String() + said.String()
	return v
}

// read takes TAP output apart. Some programs report no test points, but only an error in a diagnostic.
// Source: testanything.org, TAP version 13.
func read(out string) (v verdict) {
	points, errors := 0, []string(nil)
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "ok "):
			points++
			v.passed++
		case strings.HasPrefix(line, "not ok ") && !strings.Contains(line, "# TODO"):
			points++
			_, text, _ := strings.Cut(line, " - ")
			v.failed = append(v.failed, text)
		case strings.HasPrefix(line, `"error": "`) && line != `"error": "",`:
			errors = append(errors, line)
		}
	}
	if points == 0 {
		v.failed = append(v.failed, errors...)
	}
	return v
}

// judge holds a program's verdict against the exceptions: what is excused must fail, and nothing else may.
func (l *lab) judge(t *testing.T, name string) {
	v := l.run(t, name)
	except := exceptions[name]
	if except.retry && len(v.failed) > 0 {
		t.Logf("again, as %s: %v", except.why, v.failed)
		v = l.run(t, name)
	}
	var wrong []string
	for _, f := range v.failed {
		if !slices.ContainsFunc(except.points, func(p string) bool { return strings.Contains(f, p) }) {
			wrong = append(wrong, f)
		}
	}
	if len(wrong) > 0 {
		t.Errorf("%d passed, these failed:\n%s\n\n%s", v.passed, strings.Join(wrong, "\n"), v.said)
	}
	excused := len(v.failed) - len(wrong)
	switch {
	case excused > 0:
		t.Logf("%d passed, %d excused: %s", v.passed, excused, except.why)
	case len(except.points) > 0 && !except.maybe:
		t.Errorf("all passed: the exception can go: %s", except.why)
	}
}

func TestRead(t *testing.T) {
	v := read("TAP version 13\nok 1 - a\nnot ok 2 - b fails\n  ---\n  {\n    \"error\": \"x\",\n  }\nnot ok 3 - c # TODO later\n1..3\n")
	if got := fmt.Sprint(v.passed, v.failed); got != "1 [b fails]" {
		t.Error(got)
	}
	if v := read("TAP version 13\n    \"error\": \"no points\"\n1..0\n"); len(v.failed) != 1 {
		t.Error(v)
	}
}
