package monitor_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"worknode/fault"
	"worknode/kernel/pidfd"
	"worknode/monitor/client"
	"worknode/monitor/wire"
)

// otherBuild is the monitor once more, with what the linker changes.
func otherBuild(t *testing.T, set string) string {
	t.Helper()
	if os.Getenv("WORKNODE_MONITOR") != "" && set != "" {
		t.Skip("no Go compiler in here to make another build with")
	}
	if set == "" {
		return monitorBinary
	}
	binary := filepath.Join(t.TempDir(), "worknode-monitor")
	build := exec.Command("go", "build", "-ldflags=-s -w -X "+set, "-o", binary, "worknode/cmd/worknode-monitor")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build another monitor: %v\n%s", err, out)
	}
	return binary
}

// attach connects a client's pipes to a container; what it does not want is nil.
func (n *node) attach(id string, stdin, stdout bool) (in, out *os.File) {
	n.t.Helper()
	var theirs []*os.File
	if stdin {
		r, w, err := os.Pipe()
		if err != nil {
			n.t.Fatal(err)
		}
		in, theirs = w, append(theirs, r)
	}
	if stdout {
		r, w, err := os.Pipe()
		if err != nil {
			n.t.Fatal(err)
		}
		out, theirs = r, append(theirs, w)
	}
	if err := n.c.Attach(n.ctx(), wire.Attach{ID: id, Stdin: stdin, Stdout: stdout}, theirs); err != nil {
		n.t.Fatal(err)
	}
	for _, f := range theirs {
		f.Close()
	}
	return in, out
}

// logged waits for a container's log to end in text. Its last record may be half written at any moment.
func (n *node) logged(id, text string) {
	n.t.Helper()
	n.eventually("the log of "+id+" to end in "+strconv.Quote(text), func() bool {
		b, err := os.ReadFile(filepath.Join(n.dir, id+".log"))
		return err == nil && strings.HasSuffix(string(b), text)
	})
}

func (n *node) upgrade(binary string) string {
	n.t.Helper()
	build, err := n.c.Upgrade(n.ctx(), binary)
	if err != nil {
		n.t.Fatalf("upgrade: %v\n%s", err, n.monitorLog())
	}
	return build
}

// Everything that a monitor keeps goes through execve: writers, terminals, attached clients, half lines, exits, and
// the connection that asked for it.
func TestUpgradeKeepsEverything(t *testing.T) {
	n := newNode(t)
	next := otherBuild(t, "worknode/version.Build=next")
	const writers, lines = 8, 30000
	for i := range writers {
		n.start(n.container(fmt.Sprint("w", i), "sh", "-c", fmt.Sprintf("i=1; while [ $i -le 300 ]; do echo $i; i=$((i+1)); done; seq 301 %d; exit %d", lines, 40+i)))
	}
	tty := n.container("tty", "sh", "-c", "echo begin; printf half; read x; echo :$x; stty size; exit 8")
	tty.Terminal, tty.Stdin = true, true
	n.start(tty)
	cat := n.container("cat", "sh", "-c", "read a; printf 'un'; read x; echo finished $x; cat; exit 6")
	cat.Stdin, cat.StdinOnce = true, true
	n.start(cat)
	ttyIn, _ := n.attach("tty", true, false)
	catIn, catOut := n.attach("cat", true, true)
	defer ttyIn.Close()
	fmt.Fprintln(catIn, "begin")
	if err := n.c.Resize(n.ctx(), "tty", 90, 33); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 2)
	if _, err := io.ReadFull(catOut, head); err != nil || string(head) != "un" {
		t.Fatalf("attached client read %q, %v", head, err)
	}
	pid := n.c.Pid()
	began, err := pidfd.StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	n.start(n.container("long", "sleep", "1000"))
	for i := range 6 {
		short := fmt.Sprint("short", i)
		s := n.container(short, "sh", "-c", fmt.Sprintf("read x; exit %d", 20+i))
		s.Stdin = true
		n.start(s)
		in, _ := n.attach(short, true, false)
		// An exec that ends, and a container that ends, in the very window.
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan string)
		go func() {
			out, code := n.exec(fmt.Sprint("exec", i), "long", nil, "sh", "-c", "sleep 0.05; echo done; exit 9")
			done <- out + strconv.Itoa(code)
		}()
		w.Close()
		r.Close()
		fmt.Fprintln(in, "go")
		binary, build := monitorBinary, "dev"
		if i%2 == 0 {
			binary, build = next, "next"
		}
		if got := n.upgrade(binary); got != build {
			t.Errorf("upgraded to %q, want %q", got, build)
		}
		in.Close()
		if got := <-done; got != "done\n9" {
			t.Errorf("an exec over the upgrade gave %q", got)
		}
		if e := n.exit(short); e.Code != 20+i || e.Unknown {
			t.Errorf("%s ended as %+v, want code %d", short, e, 20+i)
		}
	}
	if now, err := pidfd.StartTime(pid); err != nil || now != began || n.c.Pid() != pid {
		t.Errorf("the monitor is another process now")
	}
	fmt.Fprint(ttyIn, "x\r")
	if e := n.exit("tty"); e.Code != 8 {
		t.Errorf("the terminal's container ended as %+v", e)
	}
	if out := n.logText("tty"); !strings.Contains(out, "begin\r\nhalf") || !strings.Contains(out, ":x\r\n33 90") {
		t.Errorf("the terminal's log is %q", out)
	}
	fmt.Fprintln(catIn, "later")
	fmt.Fprintln(catIn, "more")
	catIn.Close()
	rest, err := io.ReadAll(catOut)
	if err != nil || string(rest) != "finished later\nmore\n" {
		t.Errorf("the attached client read %q, %v: lost or doubled", rest, err)
	}
	if e := n.exit("cat"); e.Code != 6 {
		t.Errorf("cat ended as %+v", e)
	}
	if got := n.logText("cat"); got != "unfinished later\nmore\n" {
		t.Errorf("cat's log is %q", got)
	}
	for i := range writers {
		if e := n.exit(fmt.Sprint("w", i)); e.Code != 40+i || e.Unknown {
			t.Errorf("writer %d ended as %+v", i, e)
		}
		n.checkSequence(lines, filepath.Join(n.dir, fmt.Sprintf("w%d.log", i)))
	}
	for id := range n.exits {
		if err := n.c.Forget(n.ctx(), id); err != nil {
			t.Error(err)
		}
	}
	var counts []int
	for range 4 { // one container is left
		n.upgrade(monitorBinary)
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		counts = append(counts, len(open))
	}
	if counts[3] > counts[0]+2 || counts[3] > 30 { // a spare pair for looking at pipes may come and go
		t.Errorf("open descriptors after each upgrade: %v", counts)
	}
}

// A client that is behind when the build changes gets every byte once.
func TestUpgradeKeepsTheBacklogOfClients(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "sh", "-c", "read x; seq 1 60000")
	s.Stdin = true
	n.start(s)
	in, out := n.attach("c", true, true)
	fmt.Fprintln(in, "go")
	n.logged("c", " 60000\n")
	n.upgrade(monitorBinary)
	all, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for line := range strings.Lines(string(all)) {
		want++
		if line != strconv.Itoa(want)+"\n" {
			t.Fatalf("line %d is %q", want, line)
		}
	}
	if want != 60000 {
		t.Errorf("%d lines came", want)
	}
	in.Close()
}

// Input that the process has not taken yet is not lost either.
func TestUpgradeKeepsHeldInput(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "sh", "-c", "while [ ! -e /go ]; do sleep 0.01; done; exec wc -c")
	s.Stdin, s.StdinOnce = true, true
	n.start(s)
	in, _ := n.attach("c", true, false)
	const size = 1 << 18 // more than a pipe holds
	wrote := make(chan error, 1)
	go func() {
		_, err := in.Write(make([]byte, size))
		in.Close()
		wrote <- err
	}()
	for range 3 {
		n.upgrade(monitorBinary)
	}
	n.exec("go", "c", nil, "touch", "/go")
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	n.exit("c")
	if got := strings.TrimSpace(n.logText("c")); got != strconv.Itoa(size) {
		t.Errorf("%s of %d bytes arrived", got, size)
	}
}

// Whatever is wrong with the new binary, the old build goes on.
func TestUpgradeThatFailsChangesNothing(t *testing.T) {
	n := newNode(t)
	const lines = 20000
	n.start(n.container("c", "sh", "-c", fmt.Sprintf("seq 1 %d; read x; exit 3", lines)))
	n.start(n.container("d", "sleep", "1000"))
	script := func(text string) string {
		file := filepath.Join(t.TempDir(), "worknode-monitor")
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return file
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("not a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		binary string
		kind   fault.Kind
		text   string
	}{
		{"worknode-monitor", fault.Invalid, "not an absolute path"},
		{"/absent/monitor", fault.Invalid, "no such file"},
		{text, fault.Invalid, "exec format error"},
		{script("exit 1"), fault.Unsupported, "does not work"},
		{script(`echo '{"Build":"far","Protocol":9,"State":9}'`), fault.Unsupported, "reads state 9"},
		// It says the right thing, but the kernel refuses it at the last moment.
		{script(fmt.Sprintf(`echo not a program > "$0"; exec %s about`, monitorBinary)), fault.Invalid, "exec format error"},
	} {
		if _, err := n.c.Upgrade(n.ctx(), tc.binary); !fault.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %q", tc.binary, err, tc.text)
		}
		if out, code := n.exec("after"+filepath.Base(filepath.Dir(tc.binary)), "d", nil, "echo", "fine"); out != "fine\n" || code != 0 {
			t.Errorf("exec after a failed upgrade: %q, %d", out, code)
		}
	}
	if os.Getenv("WORKNODE_MONITOR") == "" {
		unable := otherBuild(t, "worknode/monitor.refuse=the_test_says_so")
		if _, err := n.c.Upgrade(n.ctx(), unable); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "the_test_says_so") {
			t.Errorf("a build that cannot take over: %v", err)
		}
	}
	n.upgrade(monitorBinary)
	n.logged("c", fmt.Sprintf(" %d\n", lines))
	n.checkSequence(lines, n.dir+"/c.log")
}

// A start that hangs holds an upgrade off, and is not harmed by it.
func TestUpgradeWaitsForStarts(t *testing.T) {
	n := newNode(t)
	ended := make(chan error, 20)
	for i := range cap(ended) {
		s := n.container(fmt.Sprint("c", i), "sh", "-c", "exit 4")
		go func() {
			_, _, err := n.c.Start(n.ctx(), s, nil)
			ended <- err
		}()
	}
	n.upgrade(monitorBinary)
	for range cap(ended) {
		if err := <-ended; err != nil {
			t.Errorf("a start beside an upgrade: %v", err)
		}
	}
	for i := range cap(ended) {
		if e := n.exit(fmt.Sprint("c", i)); e.Code != 4 {
			t.Errorf("c%d ended as %+v", i, e)
		}
	}
}

// The worst: the new build runs, says the right thing, is executed and dies. The runtime's copies rebuild everything.
func TestUpgradeToABuildThatDies(t *testing.T) {
	n := newNode(t)
	const lines = 30000
	n.start(n.container("c", "sh", "-c", fmt.Sprintf("seq 1 %d; exit 42", lines)))
	deadly := filepath.Join(t.TempDir(), "worknode-monitor")
	if err := os.WriteFile(deadly, []byte(fmt.Sprintf("#!/bin/sh\n[ \"$1\" = about ] && exec %s about\nexit 1\n", monitorBinary)), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := n.c.Upgrade(n.ctx(), deadly); !fault.Is(err, fault.Temporary) {
		t.Fatalf("the monitor died of its upgrade: %v", err)
	}
	n.cmd.Wait()
	n.boot()
	n.readopt()
	if e := n.exit("c"); e.Code != 42 {
		t.Errorf("ended as %+v", e)
	}
	n.checkSequence(lines, n.dir+"/c.log")
}

// The command that people use.
func TestUpgradeCommand(t *testing.T) {
	n := newNode(t)
	n.start(n.container("c", "sleep", "1000"))
	out, err := exec.Command(otherBuild(t, "worknode/version.Build=by-hand"), "upgrade", "--socket", n.dir+"/s").CombinedOutput()
	if err != nil || string(out) != "the monitor is build by-hand now\n" {
		t.Errorf("it said %q, %v", out, err)
	}
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	again, err := client.Dial(ctx, n.dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if out, code := n.exec("e", "c", nil, "echo", "fine"); out != "fine\n" || code != 0 {
		t.Errorf("exec: %q, %d", out, code)
	}
}

// A runtime of protocol 1, played from its golden frames, is served by this build as by its own.
func TestMonitorOfAnOldRuntime(t *testing.T) {
	n := newNode(t)
	data, err := os.ReadFile("wire/testdata/v1/requests.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	golden := strings.Split(strings.TrimSpace(string(data)), "\n")
	conn, err := wire.Dial(n.dir + "/s")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(frame string) map[string]json.RawMessage {
		t.Helper()
		if err := conn.Send(json.RawMessage(frame)); err != nil {
			t.Fatal(err)
		}
		for {
			var reply map[string]json.RawMessage
			fds, err := conn.Recv(&reply)
			wire.CloseAll(fds)
			if err != nil {
				t.Fatalf("%s: %v", frame, err)
			}
			if string(reply["Seq"]) != "0" {
				return reply
			}
		}
	}
	var hello struct{ Version, Pid int }
	if err := json.Unmarshal(ask(golden[0])["Hello"], &hello); err != nil || hello.Version < 1 || hello.Pid != n.c.Pid() {
		t.Errorf("hello %+v, %v", hello, err)
	}
	// Its start, with what exists here in the place of the golden paths.
	start := n.container("c1", "sleep", "1000")
	init, err := json.Marshal(start.Init)
	if err != nil {
		t.Fatal(err)
	}
	var frame map[string]map[string]json.RawMessage
	_ = json.Unmarshal([]byte(strings.Replace(golden[1], `"Seq":2,`, "", 1)), &frame)
	frame["Start"]["Init"] = init
	frame["Start"]["LogPath"] = json.RawMessage(strconv.Quote(n.dir + "/c1.log"))
	body, err := json.Marshal(map[string]any{"Seq": 2, "Start": frame["Start"]})
	if err != nil {
		t.Fatal(err)
	}
	var started wire.Process
	if err := json.Unmarshal(ask(string(body))["Started"], &started); err != nil || started.Pid == 0 || len(started.Files) != 5 {
		t.Errorf("started %+v, %v", started, err)
	}
	for _, g := range golden[3:] { // signals, reopen, resize, …: of a container that runs, then of one that does not
		var kind struct{ Attach, Adopt, Quit any }
		_ = json.Unmarshal([]byte(g), &kind)
		if kind.Attach != nil || kind.Adopt != nil || kind.Quit != nil {
			continue
		}
		if e := ask(g)["Error"]; strings.Contains(string(e), "does not know it") {
			t.Errorf("%s: %s", g, e)
		}
	}
	n.kept["c1"] = client.Kept{Process: started}
}
