package monitor_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/cgroup"
	"worknode/monitor/wire"
)

func TestExitCodesAndSignals(t *testing.T) {
	n := newNode(t)
	for i, tc := range []struct {
		script       string
		code, signal int
	}{
		{"exit 0", 0, 0}, {"exit 7", 7, 0}, {"kill -9 $$", 137, 9},
	} {
		id := fmt.Sprint("c", i)
		s := n.container(id, "sh", "-c", tc.script)
		if tc.signal != 0 { // the first process of a pid namespace cannot signal itself
			s.Init.New = []string{"mnt"}
		}
		n.start(s)
		if e := n.exit(id); e.Code != tc.code || e.Signal != tc.signal || e.Unknown || e.At.IsZero() {
			t.Errorf("%q ended as %+v, want code %d signal %d", tc.script, e, tc.code, tc.signal)
		}
	}
}

func TestSignalReachesTheProcess(t *testing.T) {
	n := newNode(t)
	n.start(n.container("c", "sh", "-c", `trap 'echo got it; exit 3' TERM; echo ready; while true; do sleep 0.01; done`))
	n.eventually("the trap is set", func() bool { return strings.Contains(n.logText("c"), "ready") })
	if err := n.c.Signal(n.ctx(), "c", int(unix.SIGTERM), false); err != nil {
		t.Fatal(err)
	}
	if e := n.exit("c"); e.Code != 3 {
		t.Errorf("ended as %+v, want the trap's code 3", e)
	}
	if got := n.logText("c"); got != "ready\ngot it\n" {
		t.Errorf("log is %q", got)
	}
	if err := n.c.Signal(n.ctx(), "c", int(unix.SIGTERM), false); !fault.Is(err, fault.NotFound) {
		t.Errorf("a signal to an exited process: %v, want not found", err)
	}
}

func TestStartErrorsNameWhatWasWrong(t *testing.T) {
	n := newNode(t)
	if err := os.WriteFile(filepath.Join(rootfs, "noexec"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rootfs, "lost"), []byte("#!/bin/absent\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i, tc := range []struct {
		edit func(*wire.Start)
		args string
		kind fault.Kind
		text string
	}{
		{nil, "foo", fault.NotFound, `exec: "foo": executable file not found in $PATH`},
		{nil, "/bin/foo", fault.NotFound, `exec: "/bin/foo": stat /bin/foo: no such file or directory`},
		{nil, "/noexec", fault.Denied, `exec: "/noexec": permission denied`},
		{nil, "/tmp", fault.Denied, `exec: "/tmp": is a directory`},
		{nil, "/lost", fault.NotFound, `exec /lost: no such file or directory`},
		{func(s *wire.Start) {
			s.Init.Mounts = append(s.Init.Mounts, wire.Mount{Source: "/absent", Destination: "/data", Flags: unix.MS_BIND})
		}, "true", fault.NotFound, "mount /absent on /data"},
		{func(s *wire.Start) { s.Init.Join = map[string]string{"net": "/absent/net"} }, "true", fault.NotFound, "/absent/net"},
		{func(s *wire.Start) { s.Init.Cgroup = []string{"/sys/fs/cgroup/memory/absent/cgroup.procs"} }, "true", fault.NotFound, "/absent/"},
		{func(s *wire.Start) { s.Init.Seccomp = []byte{1, 2, 3} }, "true", fault.Invalid, "seccomp"},
		{func(s *wire.Start) { s.Init.New = append(s.Init.New, "user") }, "true", fault.Unsupported, "user namespace"},
		{func(s *wire.Start) { s.LogPath = "/absent/dir/log" }, "true", fault.Unknown, "/absent/dir/log"},
		{func(s *wire.Start) { s.Init.Sysctl = map[string]string{"net.absent": "1"} }, "true", fault.NotFound, "net.absent"},
		{func(s *wire.Start) { s.ID = "../x" }, "true", fault.Invalid, "../x"},
	} {
		s := n.container(fmt.Sprint("c", i), tc.args)
		if tc.edit != nil {
			tc.edit(&s)
		}
		_, _, err := n.c.Start(n.ctx(), s, nil)
		if err == nil || fault.Of(err) != tc.kind || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("case %d: got %v (%v), want %v with %q", i, err, fault.Of(err), tc.kind, tc.text)
		}
		var stage *wire.StageError
		if strings.HasPrefix(tc.text, "exec") && (!errors.As(err, &stage) || stage.Stage != wire.StageExec) {
			t.Errorf("case %d: %v does not carry the exec stage", i, err)
		}
	}
	if list, err := n.c.List(n.ctx()); err != nil || len(list) != 0 {
		t.Errorf("failed starts are still listed: %v %v", list, err)
	}
	n.eventually("failed inits are reaped", func() bool { return len(childrenOf(n.cmd.Process.Pid)) == 0 })
	if e, _ := n.output("after", nil, "echo", "fine"); e != "fine\n" {
		t.Errorf("a start after failures printed %q", e)
	}
}

func childrenOf(pid int) []string {
	var out []string
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		out = append(out, strings.Fields(string(b))...)
	}
	return out
}

func TestSameIDIsRefusedUntilForgotten(t *testing.T) {
	n := newNode(t)
	n.start(n.container("c", "true"))
	n.exit("c")
	s := n.container("c", "true")
	if _, _, err := n.c.Start(n.ctx(), s, nil); !fault.Is(err, fault.Exists) {
		t.Fatalf("a second c: %v, want exists", err)
	}
	for range 2 { // repeating is harmless
		if err := n.c.Forget(n.ctx(), "c"); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := filepath.Glob(n.dir + "/state/*"); len(left) > 0 {
		t.Errorf("records are left: %v", left)
	}
	n.start(s)
	n.exit("c")
}

func TestRunningProcessIsNotForgottenAndMonitorDoesNotQuit(t *testing.T) {
	n := newNode(t)
	n.start(n.container("c", "sleep", "1000"))
	if err := n.c.Forget(n.ctx(), "c"); !fault.Is(err, fault.Busy) {
		t.Errorf("forget: %v, want busy", err)
	}
	if err := n.c.Quit(n.ctx()); !fault.Is(err, fault.Busy) {
		t.Errorf("quit: %v, want busy", err)
	}
	if err := n.c.Signal(n.ctx(), "c", int(unix.SIGKILL), false); err != nil {
		t.Fatal(err)
	}
	n.exit("c")
	if err := n.c.Quit(n.ctx()); err != nil {
		t.Fatal(err)
	}
	<-n.c.Done()
	if err := n.cmd.Wait(); err != nil {
		t.Errorf("the monitor ended with %v", err)
	}
}

func TestSecondMonitorIsRefused(t *testing.T) {
	n := newNode(t)
	if _, err := wire.Listen(n.dir + "/s"); !fault.Is(err, fault.Busy) {
		t.Errorf("bind a socket in use: %v, want busy", err)
	}
	n.crash()
	n.boot() // the stale socket file is replaced
}

func TestOOMKillIsSeen(t *testing.T) {
	n := newNode(t)
	memory := int64(24 << 20)
	s := n.container("c", "sh", "-c", `x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done`)
	n.limited(&s, cgroup.Resources{Memory: &memory, MemorySwap: &memory})
	n.start(s)
	if e := n.exit("c"); !e.OOMKilled || e.Code != 137 {
		t.Errorf("ended as %+v, want OOMKilled with 137", e)
	}
	s = n.container("d", "true")
	n.limited(&s, cgroup.Resources{Memory: &memory})
	n.start(s)
	if e := n.exit("d"); e.OOMKilled || e.Code != 0 {
		t.Errorf("a well-behaved one ended as %+v", e)
	}
}

func TestLimitsAndGroupsApply(t *testing.T) {
	n := newNode(t)
	pids := int64(20)
	s := n.container("c", "sh", "-c", "cat /proc/self/cgroup; ulimit -n; cat /proc/self/oom_score_adj; umask")
	group := n.limited(&s, cgroup.Resources{Pids: &pids, CPUShares: 512})
	adj, mask := 500, uint32(0o027)
	s.Init.OOMScoreAdj, s.Init.Umask = &adj, &mask
	s.Init.New = []string{"mnt", "pid"} // the host's cgroup namespace shows the whole path
	s.Init.Rlimits = []wire.Rlimit{{Type: unix.RLIMIT_NOFILE, Soft: 123, Hard: 456}}
	n.start(s)
	n.exit("c")
	out := n.logText("c")
	for _, want := range []string{group + "\n", "123\n500\n0027\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if got := strings.Count(out, group+"\n"); !tree.V2() && got != 5 {
		t.Errorf("the container is in %d hierarchies of its group, want 5:\n%s", got, out)
	}
}

// What the monitor does to itself must not reach workloads: score, ignored and blocked signals, huge pages, files.
func TestWorkloadStartsClean(t *testing.T) {
	n := newNode(t)
	out, _ := n.output("c", nil, "sed", "-n", `s/^\(SigIgn\|SigBlk\|SigPnd\|THP_enabled\):.//p`, "/proc/self/status")
	if want := "1\n0000000000000000\n0000000000000000\n0000000000000000\n"; out != want {
		t.Errorf("huge pages, pending, blocked and ignored signals: %q, want %q", out, want)
	}
	if out, _ := n.output("d", nil, "cat", "/proc/self/oom_score_adj"); out != "0\n" {
		t.Errorf("oom_score_adj is %q", out)
	}
	if out, _ := n.output("e", nil, "ls", "/proc/self/fd"); out != "0\n1\n2\n3\n" { // 3 is the directory being listed
		t.Errorf("open files: %q", out)
	}
	if out, _ := n.output("f", nil, "ls", "-l", "/proc/self/cwd"); !strings.HasSuffix(out, " -> /\n") {
		t.Errorf("working directory: %q", out)
	}
}

func TestExecEntersTheContainer(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "sh", "-c", "echo inside > /tmp/mark; exec sleep 1000")
	s.Init.Hostname = "box"
	n.limited(&s, cgroup.Resources{})
	n.start(s)
	n.eventually("the mark is written", func() bool {
		_, err := os.Stat(filepath.Join(n.dir, "c/u/tmp/mark"))
		return err == nil
	})
	out, code := n.exec("e1", "c", nil, "sh", "-c", "cat /tmp/mark; hostname; ps -o pid,args; exit 5")
	if code != 5 || !strings.HasPrefix(out, "inside\nbox\n") || !strings.Contains(out, "1 sleep 1000") {
		t.Errorf("exec printed %q, code %d", out, code)
	}
	for _, ns := range []string{"mnt", "pid", "ipc", "uts", "net", "cgroup"} {
		a, _ := n.exec("n-"+ns, "c", nil, "sh", "-c", "readlink /proc/self/ns/"+ns+"; readlink /proc/1/ns/"+ns)
		if f := strings.Fields(a); len(f) != 2 || f[0] != f[1] {
			t.Errorf("%s namespace differs: %q", ns, a)
		}
	}
	group, _ := n.exec("e2", "c", func(s *wire.Start) { s.Init.UID, s.Init.GID = 1234, 55; s.Init.Caps = wire.Caps{} },
		"sh", "-c", "id -u; id -g; grep -c '^CapEff:.*0000000000000000' /proc/self/status")
	if group != "1234\n55\n1\n" {
		t.Errorf("exec as a user printed %q", group)
	}
	if _, _, err := n.c.Start(n.ctx(), wire.Start{ID: "e3", Join: "absent", Terminal: true, Init: wire.Init{Args: []string{"true"}}}, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("exec into an absent container: %v", err)
	}
}

func TestKillAllOfAnExecSparesTheContainer(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "sh", "-c", "sleep 1000 & exec sleep 1001")
	n.limited(&s, cgroup.Resources{})
	n.start(s)
	r, w, _ := os.Pipe()
	defer r.Close()
	null, _ := os.OpenFile("/dev/null", os.O_RDWR, 0)
	defer null.Close()
	ex := wire.Start{ID: "e", Join: "c", Init: wire.Init{Env: env, Args: []string{"sh", "-c", "sleep 2000 & sleep 2001 & echo up; wait"}}}
	if _, _, err := n.c.Start(n.ctx(), ex, []*os.File{null, w, w}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := r.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if err := n.c.Signal(n.ctx(), "e", int(unix.SIGKILL), true); err != nil {
		t.Fatal(err)
	}
	if e := n.exit("e"); e.Code != 137 {
		t.Errorf("exec ended as %+v", e)
	}
	if _, err := r.Read(make([]byte, 1)); err == nil { // end of file only when every process of the exec is gone
		t.Error("output goes on")
	}
	n.eventually("only the container's own two processes are left", func() bool {
		pids, err := tree.Procs(n.group + "/c")
		return err == nil && len(pids) == 2
	})
}

// Whatever a client says, containers and other clients do not notice.
func TestBadClientHarmsNobody(t *testing.T) {
	n := newNode(t)
	n.start(n.container("c", "sleep", "1000"))
	say := func(data string) {
		t.Helper()
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: n.dir + "/s"}); err != nil {
			t.Fatal(err)
		}
		unix.Write(fd, []byte(data))
	}
	for _, data := range []string{"", "x", "\xff\xff\xff\xff", "\x02\x00\x00\x00{}", "\x04\x00\x00\x00null", "\x40\x00\x00\x00{",
		frameOf(`{"Seq":1,"Start":{}}`), frameOf(`{"Seq":1,"Start":{"ID":"x","Join":"c"}}`), frameOf(`{"Seq":1,"Attach":{"ID":"c","Stdin":true}}`),
		frameOf(`{"Seq":1,"Adopt":{"Process":{"ID":"c"}}}`), frameOf(`{"Seq":1,"Adopt":{"Process":{"ID":"y","Pid":-1,"Files":["pidfd"]}}}`),
		frameOf(`{"Seq":1,"Signal":{"ID":"c","Signal":999}}`), frameOf(`{"Seq":1,"List":{}}`)} {
		say(data)
	}
	p, err := n.c.List(n.ctx())
	if err != nil || len(p) == 0 || p[0].ID != "c" || p[0].Exit != nil {
		t.Errorf("afterwards the monitor lists %+v (%v)", p, err)
	}
	if out, code := n.exec("e", "c", nil, "echo", "alive"); out != "alive\n" || code != 0 {
		t.Errorf("exec printed %q, code %d", out, code)
	}
}

func frameOf(body string) string {
	return string(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...))
}
