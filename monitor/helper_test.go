package monitor_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"worknode/kernel/cgroup"
	"worknode/kernel/pidfd"
	"worknode/monitor/client"
	"worknode/monitor/wire"
)

// The tests drive the real binary on the real kernel: real clones, mounts and kills, seen as a container sees them.

var (
	monitorBinary string // worknode-monitor, built once
	rootfs        string // a root filesystem with busybox
	tree          *cgroup.Tree
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests start containers and need root; run them as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "wnmon")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// A machine without a Go compiler (the VM with cgroup v2) brings the binary along.
	if monitorBinary = os.Getenv("WORKNODE_MONITOR"); monitorBinary != "" {
		return prepared(m, dir)
	}
	monitorBinary = filepath.Join(dir, "worknode-monitor")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", monitorBinary, "worknode/cmd/worknode-monitor")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build worknode-monitor: %v\n%s", err, out)
		return 1
	}
	return prepared(m, dir)
}

func prepared(m *testing.M, dir string) int {
	rootfs = filepath.Join(dir, "rootfs")
	err := makeRootfs(rootfs)
	if err != nil {
		fmt.Fprintln(os.Stderr, "root filesystem:", err, "(is busybox-static installed?)")
		return 1
	}
	if err := keepZombies(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if tree, err = cgroup.Open(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// keepZombies makes this process play the node's supervisor on kernels older than 6.15: there an adopted process' exit
// code is known only as long as it is a zombie, so its subreaper must be one of ours, in no hurry to reap.
func keepZombies() error {
	cmd := exec.Command("/bin/busybox", "sleep", "1000")
	if err := cmd.Start(); err != nil {
		return err
	}
	f, err := pidfd.Open(cmd.Process.Pid)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := pidfd.ExitStatus(f, cmd.Process.Pid); err == nil {
		return nil // the kernel remembers
	}
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

func makeRootfs(dir string) error {
	for _, d := range []string{"bin", "dev", "etc", "proc", "root", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	bb, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), bb, 0o755); err != nil {
		return err
	}
	for _, applet := range strings.Fields("sh ls cat echo true false sleep id seq kill mount touch stat tail head grep ps dd sed hostname ln readlink tty stty mknod chmod awk wc yes env pwd mkdir tr") {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644)
}

// node is a monitor with its directory, and the runtime's side of the connection to it.
type node struct {
	t   testing.TB
	dir string
	cmd *exec.Cmd
	log *os.File
	c   *client.Client

	mu    sync.Mutex
	exits map[string]wire.Exit
	more  chan struct{} // closed and replaced when exits grows
	kept  map[string]client.Kept
	group string
}

func newNode(t testing.TB) *node {
	t.Helper()
	// The socket's path must be short, and t.TempDir is not.
	dir, err := os.MkdirTemp("", "wnm")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, exits: map[string]wire.Exit{}, more: make(chan struct{}), kept: map[string]client.Kept{},
		group: "/worknode-test-" + filepath.Base(dir)}
	if n.log, err = os.Create(filepath.Join(dir, "monitor.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.clean)
	n.boot()
	return n
}

// boot starts a monitor and connects, as a runtime does at its start and after the monitor's death.
func (n *node) boot() {
	n.t.Helper()
	n.cmd = exec.Command(monitorBinary, "--socket", n.dir+"/s", "--state", n.dir+"/state")
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.connect()
}

func (n *node) connect() {
	n.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := client.Dial(context.Background(), n.dir+"/s")
		if err == nil && c.Pid() == n.cmd.Process.Pid {
			n.c = c
			break
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("the monitor does not serve: %v\n%s", err, n.monitorLog())
		}
		pause(2 * time.Millisecond)
	}
	c := n.c
	go func() {
		for {
			select {
			case e := <-c.Exits():
				n.mu.Lock()
				n.exits[e.ID] = e
				close(n.more)
				n.more = make(chan struct{})
				n.mu.Unlock()
			case <-c.Done():
				return
			}
		}
	}()
}

// pause waits a moment between two looks at something that has no event.
func pause(d time.Duration) { <-time.After(d) }

func (n *node) monitorLog() string {
	b, _ := os.ReadFile(n.dir + "/monitor.log")
	return string(b)
}

// crash kills the monitor as nothing else does.
func (n *node) crash() {
	n.t.Helper()
	if err := n.cmd.Process.Kill(); err != nil {
		n.t.Fatal(err)
	}
	n.cmd.Wait()
	<-n.c.Done()
}

// readopt gives everything kept to the new monitor.
func (n *node) readopt() {
	n.t.Helper()
	for id, k := range n.kept {
		if err := n.c.Adopt(n.ctx(), k.Process, k.Files); err != nil {
			n.t.Fatalf("adopt %s: %v", id, err)
		}
	}
}

func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	n.t.Cleanup(cancel)
	return ctx
}

func (n *node) clean() {
	for _, k := range n.kept {
		unix.Kill(k.Pid, unix.SIGKILL)
	}
	if err := tree.Kill(n.group); err != nil {
		n.t.Error(err)
	}
	n.c.Close()
	n.cmd.Process.Kill()
	n.cmd.Wait()
	for _, k := range n.kept {
		for _, f := range k.Files {
			f.Close()
		}
	}
	if err := tree.Remove(n.group); err != nil {
		n.t.Error(err)
	}
	if n.t.Failed() {
		n.t.Log("monitor's log:\n" + n.monitorLog())
	}
	n.log.Close()
	os.RemoveAll(n.dir)
}

const allCaps = 1<<41 - 1

// defaultCaps are the fourteen that containers usually have.
const defaultCaps = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<13 | 1<<18 | 1<<27 | 1<<29 | 1<<31

var env = []string{"PATH=/bin", "HOME=/root"}

// container is an ordinary container that runs args.
func (n *node) container(id string, args ...string) wire.Start {
	n.t.Helper()
	base := filepath.Join(n.dir, id)
	for _, d := range []string{"u", "w"} {
		if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	none := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	s := wire.Start{
		ID: id, LogPath: filepath.Join(n.dir, id+".log"),
		Init: wire.Init{
			New:  []string{"mnt", "pid", "ipc", "uts", "cgroup"},
			Root: wire.Root{Base: filepath.Dir(rootfs), Lower: []string{"rootfs"}, Upper: base + "/u", Work: base + "/w"},
			Mounts: []wire.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc", Flags: none},
				{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_STRICTATIME, Data: "mode=755,size=65536k"},
				{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "newinstance,ptmxmode=0666,mode=0620"},
				{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Flags: none},
				{Destination: "/sys", Type: "sysfs", Source: "sysfs", Flags: none | unix.MS_RDONLY},
			},
			Masked:   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/absent"},
			Readonly: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Args:     args, Env: env, Cwd: "/",
			Caps:       wire.Caps{Bounding: defaultCaps, Effective: defaultCaps, Permitted: defaultCaps},
			NoNewPrivs: true,
		},
	}
	for name, minor := range map[string]int64{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		s.Init.Devices = append(s.Init.Devices, wire.Device{Path: "/dev/" + name, Type: "c", Major: 1, Minor: minor, Mode: 0o666})
	}
	s.Init.Devices = append(s.Init.Devices, wire.Device{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0, Mode: 0o666})
	return s
}

// limited puts the container into a cgroup of its own.
func (n *node) limited(s *wire.Start, r cgroup.Resources) string {
	n.t.Helper()
	group := n.group + "/" + s.ID
	if err := tree.Make(group, r); err != nil {
		n.t.Fatal(err)
	}
	s.Init.Cgroup, s.OOMFile = tree.ProcsFiles(group), tree.OOMFile(group)
	return group
}

func (n *node) start(s wire.Start) wire.Process {
	n.t.Helper()
	p, files, err := n.c.Start(n.ctx(), s, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	n.kept[s.ID] = client.Kept{Process: p, Files: files}
	return p
}

// exit waits for a process to be reported as ended.
func (n *node) exit(id string) wire.Exit {
	n.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		n.mu.Lock()
		e, ok := n.exits[id]
		more := n.more
		n.mu.Unlock()
		if ok {
			return e
		}
		select {
		case <-more:
		case <-deadline:
			n.t.Fatalf("no exit of %s was reported\n%s", id, n.monitorLog())
		}
	}
}

// output runs args in a fresh ordinary container, changed by edit, and returns what it printed and its exit code.
func (n *node) output(id string, edit func(*wire.Start), args ...string) (string, int) {
	n.t.Helper()
	s := n.container(id, args...)
	if edit != nil {
		edit(&s)
	}
	n.start(s)
	e := n.exit(id)
	return n.logText(id), e.Code
}

// logText is a container's log without its headers.
func (n *node) logText(id string) string {
	n.t.Helper()
	var out strings.Builder
	for _, l := range n.records(filepath.Join(n.dir, id+".log")) {
		out.WriteString(l.text)
		if l.tag == "F" {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

type record struct {
	at                time.Time
	stream, tag, text string
}

// records parses a CRI log; any malformed line fails the test.
func (n *node) records(file string) (out []record) {
	n.t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		n.t.Fatal(err)
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		n.t.Fatalf("%s ends in a torn record: %q", file, b[max(0, len(b)-80):])
	}
	for line := range bytes.Lines(b) {
		f := strings.SplitN(strings.TrimSuffix(string(line), "\n"), " ", 4)
		if len(f) != 4 || f[1] != "stdout" && f[1] != "stderr" || f[2] != "F" && f[2] != "P" {
			n.t.Fatalf("%s: malformed record %q", file, line)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil {
			n.t.Fatalf("%s: %v", file, err)
		}
		out = append(out, record{at, f[1], f[2], f[3]})
	}
	return out
}

// exec runs args inside a container and returns its output and exit code.
func (n *node) exec(id, in string, edit func(*wire.Start), args ...string) (string, int) {
	n.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		n.t.Fatal(err)
	}
	defer r.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	defer null.Close()
	s := wire.Start{ID: id, Join: in, Init: wire.Init{
		Args: args, Env: env, Cwd: "/", NoNewPrivs: true,
		Caps: wire.Caps{Bounding: defaultCaps, Effective: defaultCaps, Permitted: defaultCaps},
	}}
	if edit != nil {
		edit(&s)
	}
	_, _, err = n.c.Start(n.ctx(), s, []*os.File{null, w, w})
	w.Close()
	if err != nil {
		n.t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := out.ReadFrom(r); err != nil {
		n.t.Fatal(err)
	}
	return out.String(), n.exit(id).Code
}

// eventually waits until ok is true; what says what was missing.
func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			n.t.Fatalf("never happened: %s\n%s", what, n.monitorLog())
		}
		pause(5 * time.Millisecond)
	}
}
