// Package vm runs the tests that touch the kernel once more on a machine that this one is not: cgroup v2 alone, kernel
// 6.1, all capabilities, in qemu. Each test in there is a subtest here, under the name of its package.
package vm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"worknode/test/harness"
)

// packages are the suites, in the order they run: what everything else stands on comes first.
var packages = []string{
	"./kernel/...", "./monitor/...", "./runtime/image", "./runtime/network", "./runtime/seccomp", "./kubelet/cgroups", "./kubelet/volume", "./kubelet/logs",
	"./proxy/act", "./test/net", "./test/cri", "./test/node", "./test/crash",
}

// excluded names tests that cannot run in there, with the reason.
var excluded = map[string]string{
	"test/cri.TestReferencePlugins": "it builds CNI plugins with the Go compiler, which the guest does not have",
}

// programs are taken from the host, with their libraries: busybox has no or another version of them.
var programs = []string{"ip", "nft", "nsenter", "setpriv", "script", "mount", "umount", "sysctl"}

// only narrows a developer's run, as in: go test ./test/vm -only test/node:TestExample
var only = flag.String("only", "", "run one package's tests alone, or PACKAGE:REGEXP")

// reference is where upstream's CNI plugins are.
const reference = "github.com/containernetworking/plugins/plugins/"

// slow is how many times longer than usual a test may take, as the guest's CPU is emulated.
const slow = 10

// suite is one package's tests.
type suite struct {
	pkg, dir string
	name     string // of its folder in the guest
	skip     []string
	raw      bytes.Buffer // what it printed
	code     int          // -1: it did not end
	broken   string       // why it could not be compiled
	at, idle float64      // seconds since boot when it ended, and of those how many the two CPUs were idle
}

func TestCgroupV2(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	dir, suites := t.TempDir(), listed(t)
	furnish(t, dir)
	compile(t, dir, suites)
	write(t, dir+"/test", script(suites), 0o755)
	bare := &suite{pkg: "bare", name: "bare", code: -1}
	log := boot(t, dir, append([]*suite{bare}, suites...))
	t.Run("preflight", func(t *testing.T) { preflight(t, bare) })
	before := bare
	for _, s := range suites {
		t.Run(s.pkg, func(t *testing.T) {
			for _, name := range s.skip {
				t.Run(name, func(t *testing.T) { t.Skip(excluded[s.pkg+"."+name]) })
			}
			s.report(t, log)
			if s.code == -1 {
				return
			}
			t.Logf("%.0f seconds, the CPUs %.0f%% idle", s.at-before.at, (s.idle-before.idle)/(s.at-before.at)/2*100)
			before = s
		})
	}
}

// listed finds the packages that have tests.
func listed(t *testing.T) (all []*suite) {
	format := `{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}`
	for _, line := range strings.Split(strings.TrimSpace(host(t, "go", append([]string{"list", "-f", format}, packages...)...)), "\n") {
		path, dir, _ := strings.Cut(line, " ")
		pkg := strings.TrimPrefix(path, "worknode/")
		if want, _, _ := strings.Cut(*only, ":"); want != "" && want != pkg {
			continue
		}
		s := &suite{pkg: pkg, dir: dir, name: strings.ReplaceAll(pkg, "/", "-"), code: -1}
		for test := range excluded {
			if name, ok := strings.CutPrefix(test, pkg+"."); ok {
				s.skip = append(s.skip, name)
			}
		}
		all = append(all, s)
	}
	return all
}

// host runs a program of this machine in the top of the checkout and returns what it prints.
func host(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = harness.Top(), &out, &errs
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}

func write(t *testing.T, file, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// lay copies a file of this machine to the same or another place of the guest.
func lay(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatalf("%v: run `make test`, which builds and installs what this needs", err)
	}
	write(t, to, string(data), 0o755)
}

// furnish lays the built binaries, images and programs into the guest's root.
func furnish(t *testing.T, dir string) {
	for _, name := range []string{"worknode", "worknode-monitor", "kubectl"} {
		lay(t, filepath.Join(harness.Top(), "bin", name), dir+"/top/bin/"+name)
	}
	for _, files := range []string{"test/images/*.tar", "example/images/*.tar", "example/manifests/*"} {
		found, err := filepath.Glob(filepath.Join(harness.Top(), files))
		if err != nil || len(found) == 0 {
			t.Fatalf("there is no %s: run `make test`, which builds what this needs", files)
		}
		for _, file := range found {
			lay(t, file, dir+"/top/"+filepath.Dir(files)+"/"+filepath.Base(file))
		}
	}
	for _, name := range programs {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatalf("%v: run `scripts/setup test`", err)
		}
		lay(t, path, dir+"/tools/"+name)
		// The loader and the libraries are where the program looks for them: the same places as here.
		for _, lib := range regexp.MustCompile(`/\S+`).FindAllString(host(t, "ldd", path), -1) {
			if _, err := os.Stat(dir + lib); err != nil {
				lay(t, lib, dir+lib)
			}
		}
	}
	plugins := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/top/cni/", reference+"main/bridge", reference+"main/ptp", reference+"ipam/host-local", reference+"meta/portmap")
	plugins.Dir, plugins.Env = filepath.Join(harness.Top(), "test/cni"), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := plugins.CombinedOutput(); err != nil {
		t.Fatalf("build the reference plugins: %v\n%s", err, out)
	}
	plugin := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/top/nri", ".")
	plugin.Dir, plugin.Env = filepath.Join(harness.Top(), "test/upstream/nri"), append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := plugin.CombinedOutput(); err != nil {
		t.Fatalf("build the NRI plugin: %v\n%s", err, out)
	}
	write(t, dir+"/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", 0o644)
	write(t, dir+"/etc/group", "root:x:0:\nnogroup:x:65534:\n", 0o644)
	write(t, dir+"/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644)
	write(t, dir+"/etc/resolv.conf", "", 0o644)
}

// compile builds every suite's test binary, with the files that its tests read beside it.
func compile(t *testing.T, dir string, suites []*suite) {
	for _, s := range suites {
		at := filepath.Join(dir, "suites", s.name)
		cmd := exec.Command("go", "test", "-c", "-ldflags=-s -w", "-o", at+"/run.test", "worknode/"+s.pkg)
		cmd.Dir, cmd.Env = harness.Top(), append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			s.broken = fmt.Sprintf("%v: %s", err, out)
			continue
		}
		if _, err := os.Stat(s.dir + "/testdata"); err == nil {
			if err := os.CopyFS(at+"/testdata", os.DirFS(s.dir+"/testdata")); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The guest's script and this test speak by lines that begin with these words.
const begin, end = "vm-begin ", "vm-end "

// script runs the preflight on a machine that lacks one thing after the other, then each suite.
func script(suites []*suite) string {
	var b strings.Builder
	fmt.Fprintf(&b, `#!/bin/sh
# Messages of the kernel would land in the middle of our lines.
dmesg -n 1
export PATH=/tools:$PATH WORKNODE_TOP=/top WORKNODE_MONITOR=/top/bin/worknode-monitor WORKNODE_CNI_PLUGINS=/top/cni WORKNODE_NRI_PLUGIN=/top/nri WORKNODE_SLOW=%d
mkdir /root/manifests
lacking() {
	what=$1
	shift
	"$@"
	/top/bin/worknode run --isolated --root /root/bare /root/manifests 2>&1
	echo "lacking $what: exit code $?, left behind: $(ls /root/bare /sys/fs/cgroup/worknode* 2>/dev/null)"
}
echo
echo %q
modules=/lib/modules/$(uname -r)
mv $modules /root/modules
lacking overlay true
mv /root/modules $modules
modprobe overlay
mv $modules /root/modules
lacking nftables true
lacking cgroups umount /sys/fs/cgroup
mv /root/modules $modules
mount -t cgroup2 cgroup2 /sys/fs/cgroup
/sbin/load-modules
echo "%s0 $(cat /proc/uptime)"
`, slow, begin+"bare", end)
	for _, s := range suites {
		if s.broken != "" {
			continue
		}
		choice := ""
		if len(s.skip) > 0 {
			choice = " -test.skip='^(" + strings.Join(s.skip, "|") + ")$'"
		}
		if _, run, ok := strings.Cut(*only, ":"); ok {
			choice += " -test.run='" + run + "'"
		}
		fmt.Fprintf(&b, "echo %q; cd /suites/%s; ./run.test -test.v=test2json -test.timeout=25m%s 2>&1; code=$?; echo; echo %q$code $(cat /proc/uptime); rm run.test\n",
			begin+s.name, s.name, choice, end)
	}
	return b.String() + "exit 0\n"
}

// boot runs the machine to its end and hands each suite its output; it returns the file that holds all of it.
func boot(t *testing.T, dir string, suites []*suite) string {
	cache := filepath.Join(harness.Top(), ".cache/vm")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(cache, "last.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(harness.Top(), "test/vm/boot"), dir)
	limit := 45 * time.Minute
	if deadline, ok := t.Deadline(); ok { // end the machine ourselves, so that we can tell what it did
		limit = min(limit, time.Until(deadline)-30*time.Second)
	}
	cmd.Env = append(os.Environ(), "BARE=1", "MEM=4096", fmt.Sprintf("LIMIT=%d", int(limit.Seconds())))
	cmd.Stderr = log
	// The machine ends with us, however we end. The signal comes when the thread that started it does, hence the lock.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var now *suite
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		line := lines.Text()
		fmt.Fprintln(log, line)
		if testing.Verbose() {
			fmt.Println("vm|", strings.TrimLeft(line, "\x16"))
		}
		switch {
		case strings.HasPrefix(line, begin):
			for _, s := range suites {
				if s.name == line[len(begin):] {
					now = s
				}
			}
		case strings.HasPrefix(line, end) && now != nil:
			if n, err := fmt.Sscan(line[len(end):], &now.code, &now.at, &now.idle); n == 0 {
				t.Errorf("%q: %v", line, err)
			}
			now = nil
		case now != nil:
			now.raw.WriteString(line + "\n")
		}
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil {
		t.Errorf("the machine did not come to its end: %v; its output is in %s", err, log.Name())
	}
	return log.Name()
}

// preflight: a machine that cannot be a node is told so in one line with a remedy, and nothing is made.
func preflight(t *testing.T, bare *suite) {
	if bare.code != 0 {
		t.Fatalf("it did not run:\n%s", bare.raw.String())
	}
	for what, wants := range map[string][]string{
		"overlay":  {"worknode: ", "overlay", "modprobe overlay", "CONFIG_OVERLAY_FS"},
		"nftables": {"worknode: ", "modprobe nf_tables", "CONFIG_NF_TABLES"},
		"cgroups":  {"worknode: ", "cgroup", "mount cgroup2"},
	} {
		said, rest, found := strings.Cut(bare.raw.String(), "lacking "+what+": exit code ")
		if i := strings.LastIndex(said, "lacking "); i >= 0 {
			_, said, _ = strings.Cut(said[i:], "\n")
		}
		rest, _, _ = strings.Cut(rest, "\n")
		if !found || rest != "1, left behind: " {
			t.Errorf("without %s: exit code %s", what, rest)
		}
		for _, want := range wants {
			if !strings.Contains(said, want) {
				t.Errorf("without %s: %q is not in: %s", what, want, said)
			}
		}
		if strings.Count(strings.TrimSpace(said), "\n") > 0 {
			t.Errorf("without %s: more than a line: %s", what, said)
		}
	}
}

// event is what test2json makes of a test's output. Source: go doc cmd/test2json.
type event struct{ Action, Test, Output string }

// report makes subtests of what the suite's tests said.
func (s *suite) report(t *testing.T, log string) {
	if s.broken != "" {
		t.Fatal(s.broken)
	}
	cmd := exec.Command("go", "tool", "test2json")
	cmd.Stdin = &s.raw
	data, err := cmd.Output()
	if err != nil {
		t.Fatalf("test2json: %v", err)
	}
	var order []string
	ended, output := map[string]string{}, map[string]string{}
	for line := range bytes.Lines(data) {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("test2json says %q: %v", line, err)
		}
		switch e.Action {
		case "run":
			order = append(order, e.Test)
		case "output":
			output[e.Test] += e.Output
		case "pass", "fail", "skip":
			ended[e.Test] = e.Action
		}
	}
	for _, name := range order {
		t.Run(name, func(t *testing.T) {
			switch ended[name] {
			case "pass":
			case "skip":
				t.Skip(output[name])
			default:
				t.Errorf("%s in the machine:\n%s", ended[name], output[name])
			}
		})
	}
	if s.code == -1 {
		t.Errorf("the suite did not run to its end; the machine's output is in %s", log)
	} else if s.code != 0 || len(order) == 0 {
		t.Errorf("%d tests, exit code %d:\n%s", len(order), s.code, output[""])
	}
}
