package monitor_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/wire"
)

func TestLogHasBothStreamsAndSplitsLongLines(t *testing.T) {
	n := newNode(t)
	// 40,000 letters make two partial records and a rest; a last line without newline is complete at the end.
	n.start(n.container("c", "sh", "-c", `echo out; echo err >&2; echo; dd if=/dev/zero bs=1000 count=40 2>/dev/null | tr '\000' a; echo; printf tail`))
	if e := n.exit("c"); e.Code != 0 {
		t.Fatalf("ended as %+v", e)
	}
	var short []string
	var long int
	for _, r := range n.records(n.dir + "/c.log") {
		if strings.HasPrefix(r.text, "a") {
			long += len(r.text)
			if want := "P"; len(r.text) == 16<<10 && r.tag != want || len(r.text) < 16<<10 && r.tag != "F" || len(r.text) > 16<<10 {
				t.Errorf("a record of %d bytes is tagged %s", len(r.text), r.tag)
			}
			continue
		}
		if r.tag != "F" || time.Since(r.at) > time.Minute {
			t.Errorf("record %s %s %.40q", r.stream, r.tag, r.text)
		}
		short = append(short, r.stream+":"+r.text)
	}
	if long != 40000 {
		t.Errorf("%d letters were logged, want 40000", long)
	}
	for _, want := range []string{"stdout:out", "stderr:err", "stdout:", "stdout:tail"} {
		found := 0
		for _, s := range short {
			if s == want {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%q was logged %d times: %q", want, found, short)
		}
	}
}

func TestReopenSplitsBetweenRecords(t *testing.T) {
	n := newNode(t)
	const lines = 30000
	n.start(n.container("c", "seq", "1", fmt.Sprint(lines)))
	log := n.dir + "/c.log"
	files := []string{}
	for i := range 20 {
		old := fmt.Sprintf("%s.%02d", log, i)
		if err := os.Rename(log, old); err != nil {
			t.Fatal(err)
		}
		if err := n.c.Reopen(n.ctx(), "c"); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(log); err != nil {
			t.Fatalf("after reopen: %v", err)
		}
		before, _ := os.Stat(old)
		files = append(files, old)
		pause(time.Millisecond)
		if after, _ := os.Stat(old); after.Size() != before.Size() {
			t.Fatalf("%s grew after reopen", old)
		}
	}
	n.exit("c")
	n.checkSequence(lines, append(files, log)...)
}

// checkSequence wants the numbers 1 to last in the files, each once, in order.
func (n *node) checkSequence(last int, files ...string) {
	n.t.Helper()
	next := 1
	for _, f := range files {
		for _, r := range n.records(f) {
			if r.text != fmt.Sprint(next) || r.tag != "F" {
				n.t.Fatalf("%s: found %q (%s) where %d should be", filepath.Base(f), r.text, r.tag, next)
			}
			next++
		}
	}
	if next != last+1 {
		n.t.Fatalf("the log ends at %d, want %d", next-1, last)
	}
}

func TestReopenFailsWithoutMakingAFile(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "sleep", "1000")
	dir := n.dir + "/logs"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.LogPath = dir + "/c.log"
	n.start(s)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := n.c.Reopen(n.ctx(), "c"); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("reopen in a missing directory: %v", err)
	}
	if err := n.c.Reopen(n.ctx(), "absent"); !fault.Is(err, fault.NotFound) {
		t.Errorf("reopen of nothing: %v", err)
	}
}

// The monitor is killed again and again while a container writes. Nothing may be lost, doubled or torn.
func TestNoLineIsLostWhenTheMonitorIsKilled(t *testing.T) {
	n := newNode(t)
	const lines = 100000
	// Small writes and big ones, so that kills land in every step; the exit code tells that no write failed.
	n.start(n.container("c", "sh", "-c", fmt.Sprintf("i=1; while [ $i -le %d ]; do echo $i; i=$((i+1)); done; seq %d %d; exit 42", lines/2, lines/2+1, lines*3)))
	kills := 0
	for ; ; kills++ {
		// The child opens its eyes sometimes at once, sometimes after a while.
		pause(time.Duration(1+kills*7%11) * time.Millisecond)
		n.mu.Lock()
		_, ended := n.exits["c"]
		n.mu.Unlock()
		if ended {
			break
		}
		n.crash()
		n.boot()
		n.readopt()
	}
	if e := n.exit("c"); e.Code != 42 || e.Unknown {
		t.Errorf("ended as %+v, want 42", e)
	}
	t.Logf("%d kills", kills)
	if kills < 5 {
		t.Errorf("only %d kills happened: the test shows nothing", kills)
	}
	n.checkSequence(lines*3, n.dir+"/c.log")
}

func TestExitWhileNoMonitorRuns(t *testing.T) {
	n := newNode(t)
	n.start(n.container("quick", "sh", "-c", "read x < /tmp/go; echo bye; exit 9"))
	n.start(n.container("slow", "sleep", "1000"))
	if err := unix.Mkfifo(n.dir+"/quick/u/tmp/go", 0o666); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	n.crash()
	if err := unix.Kill(n.kept["slow"].Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.eventually("the process has ended", func() bool {
		return unix.Kill(n.kept["slow"].Pid, 0) == unix.ESRCH || zombie(n.kept["slow"].Pid)
	})
	n.boot()
	n.readopt()
	if e := n.exit("slow"); e.Code != 137 || e.Unknown {
		t.Errorf("slow ended as %+v, want 137", e)
	}
	if e := n.exit("quick"); e.Code == 0 || e.Unknown { // the read fails or not, the code is the container's own
		t.Errorf("quick ended as %+v", e)
	}
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(b), ") Z ")
}

func TestRecordedExitIsRepeatedUntilForgotten(t *testing.T) {
	n := newNode(t)
	n.start(n.container("c", "sh", "-c", "exit 4"))
	n.exit("c")
	again := func() {
		n.mu.Lock()
		clear(n.exits)
		n.mu.Unlock()
	}
	n.c.Close()
	again()
	n.connect()
	if e := n.exit("c"); e.Code != 4 {
		t.Errorf("repeated to a new connection as %+v", e)
	}
	n.crash()
	again()
	n.boot()
	list, err := n.c.List(n.ctx())
	if err != nil || len(list) != 1 || list[0].Exit == nil || list[0].Exit.Code != 4 {
		t.Fatalf("a new monitor lists %+v (%v), want the exit 4", list, err)
	}
	if err := n.c.Forget(n.ctx(), "c"); err != nil {
		t.Fatal(err)
	}
	n.crash()
	n.boot()
	if list, _ := n.c.List(n.ctx()); len(list) != 0 {
		t.Errorf("forgotten, and listed again: %+v", list)
	}
	delete(n.kept, "c")
}

// A runtime that has lost everything gets it back from List, and can rebuild the monitor with that.
func TestListGivesTheKeepersFilesAgain(t *testing.T) {
	n := newNode(t)
	n.start(n.container("c", "sh", "-c", "i=1; while [ $i -le 3000 ]; do echo $i; i=$((i+1)); done"))
	for _, f := range n.kept["c"].Files {
		f.Close()
	}
	n.c.Close()
	n.connect()
	list, err := n.c.List(n.ctx())
	if err != nil || len(list) != 1 {
		t.Fatalf("list: %+v %v", list, err)
	}
	n.kept["c"] = list[0]
	n.crash()
	n.boot()
	n.readopt()
	n.exit("c")
	n.checkSequence(3000, n.dir+"/c.log")
}

// A full disk costs records, never the container.
func TestFullDiskDropsWholeRecords(t *testing.T) {
	n := newNode(t)
	small := n.dir + "/small"
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(small, unix.MNT_DETACH)
	s := n.container("c", "sh", "-c", "seq 1 20000; exit 6")
	s.LogPath = small + "/c.log"
	n.start(s)
	if e := n.exit("c"); e.Code != 6 {
		t.Errorf("ended as %+v, want 6", e)
	}
	recs := n.records(s.LogPath) // fails on a torn one
	if len(recs) == 0 || len(recs) >= 20000 {
		t.Errorf("%d records fit into 64 KiB", len(recs))
	}
	if !strings.Contains(n.monitorLog(), "log records are lost") {
		t.Error("nobody was told")
	}
}

func TestAttachFollowsOutputAndNeverBlocks(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "sh", "-c", "read x; echo got $x; read y; seq 1 200000; exit 3")
	s.Stdin = true
	n.start(s)
	inR, inW, _ := os.Pipe()
	outR, outW, _ := os.Pipe()
	stuckR, stuckW, _ := os.Pipe() // a client that never reads
	defer stuckR.Close()
	if err := n.c.Attach(n.ctx(), wire.Attach{ID: "c", Stdin: true, Stdout: true}, []*os.File{inR, outW}); err != nil {
		t.Fatal(err)
	}
	if err := n.c.Attach(n.ctx(), wire.Attach{ID: "c", Stdout: true}, []*os.File{stuckW}); err != nil {
		t.Fatal(err)
	}
	inR.Close()
	outW.Close()
	stuckW.Close()
	fmt.Fprintln(inW, "hello")
	buf := make([]byte, 10)
	if _, err := io.ReadFull(outR, buf); err != nil || string(buf) != "got hello\n" {
		t.Fatalf("attached client read %q (%v)", buf, err)
	}
	fmt.Fprintln(inW, "more")
	rest, err := io.ReadAll(outR)
	if err != nil || !strings.HasSuffix(string(rest), "\n200000\n") {
		t.Errorf("attached client read %d bytes to the end (%v)", len(rest), err)
	}
	if e := n.exit("c"); e.Code != 3 {
		t.Errorf("ended as %+v, want 3", e)
	}
	inW.Close()
}

// One attach session with StdinOnce ends the input of the process, though the runtime keeps a duplicate of the pipe.
func TestStdinOnceGivesEndOfFile(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "cat")
	s.Stdin, s.StdinOnce = true, true
	n.start(s)
	inR, inW, _ := os.Pipe()
	if err := n.c.Attach(n.ctx(), wire.Attach{ID: "c", Stdin: true}, []*os.File{inR}); err != nil {
		t.Fatal(err)
	}
	inR.Close()
	fmt.Fprintln(inW, "one line")
	inW.Close()
	if e := n.exit("c"); e.Code != 0 {
		t.Errorf("ended as %+v", e)
	}
	if got := n.logText("c"); got != "one line\n" {
		t.Errorf("log is %q", got)
	}
}

func TestTerminal(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "sh", "-c", "tty; test -c /dev/console && echo console; read x; stty size; exit 8")
	s.Terminal, s.Stdin = true, true
	n.start(s)
	inR, inW, _ := os.Pipe()
	if err := n.c.Resize(n.ctx(), "c", 90, 33); err != nil {
		t.Fatal(err)
	}
	if err := n.c.Attach(n.ctx(), wire.Attach{ID: "c", Stdin: true}, []*os.File{inR}); err != nil {
		t.Fatal(err)
	}
	inR.Close()
	// A kill of the monitor hangs nobody up: the runtime keeps the terminal. Only bytes in flight may be lost.
	n.eventually("the first output is logged", func() bool { return strings.Contains(n.logText("c"), "console") })
	n.crash()
	n.boot()
	n.readopt()
	inR, inW2, _ := os.Pipe()
	if err := n.c.Attach(n.ctx(), wire.Attach{ID: "c", Stdin: true}, []*os.File{inR}); err != nil {
		t.Fatal(err)
	}
	inR.Close()
	inW.Close()
	fmt.Fprint(inW2, "x\r")
	if e := n.exit("c"); e.Code != 8 {
		t.Errorf("ended as %+v, want 8", e)
	}
	out := n.logText("c")
	for _, want := range []string{"console", "33 90"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	inW2.Close()
}

func TestExecWithTerminal(t *testing.T) {
	n := newNode(t)
	n.start(n.container("c", "sleep", "1000"))
	_, files, err := n.c.Start(n.ctx(), wire.Start{ID: "e", Join: "c", Terminal: true,
		Init: wire.Init{Args: []string{"sh", "-c", "tty && read x && echo read $x; exit 2"}, Env: env}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 1 {
		t.Fatalf("got %d files, want the master", len(files))
	}
	master := files[0]
	fmt.Fprint(master, "word\r")
	var out strings.Builder
	buf := make([]byte, 256)
	for {
		k, err := master.Read(buf)
		out.Write(buf[:k])
		if err != nil {
			break
		}
	}
	master.Close()
	if e := n.exit("e"); e.Code != 2 || !strings.Contains(out.String(), "/dev/pts/0") || !strings.Contains(out.String(), "read word") {
		t.Errorf("code %d, terminal showed %q", e.Code, out.String())
	}
}

// A process that inherited the output and lives on delays the report, but not for ever, and its lines still count.
func TestGrandchildHoldingTheOutput(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "sh", "-c", "(sleep 0.3; echo late) & echo early; exit 5")
	s.Init.New = []string{"mnt"} // on the host's pid namespace nobody kills the grandchild
	n.start(s)
	if e := n.exit("c"); e.Code != 5 {
		t.Errorf("ended as %+v", e)
	}
	if got := n.logText("c"); got != "early\nlate\n" {
		t.Errorf("log is %q", got)
	}
}

func TestCallsFailWhenTheMonitorIsGone(t *testing.T) {
	n := newNode(t)
	n.crash()
	if err := n.c.Forget(context.Background(), "x"); !fault.Is(err, fault.Temporary) {
		t.Errorf("a call without monitor: %v, want temporary", err)
	}
	n.boot()
}
