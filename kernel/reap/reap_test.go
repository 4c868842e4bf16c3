package reap

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestOwnChildrenAndOrphansAreReaped(t *testing.T) {
	r, err := New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The shell leaves an orphan behind, which falls to us and ends with code 7.
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	pid, exit, err := r.Start("/bin/sh", []string{"sh", "-c", `sh -c 'sleep 0.2; exit 7' & echo $!; exit 3`}, &os.ProcAttr{Env: os.Environ(), Files: []*os.File{nil, in, in}})
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	select {
	case how := <-exit:
		if how.Status.ExitStatus() != 3 {
			t.Errorf("child %d: %s, want exit code 3", pid, how)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no exit")
	}
	line := make([]byte, 32)
	n, _ := out.Read(line)
	orphan := strings.TrimSpace(string(line[:n]))
	state := func() string {
		data, _ := os.ReadFile("/proc/" + orphan + "/stat")
		if f := strings.Fields(string(data)); len(f) > 2 {
			return f[2]
		}
		return ""
	}
	until(t, "the orphan to end", func() bool { return state() == "Z" })
	began := time.Now()
	until(t, "the orphan to be reaped", func() bool { return state() == "" })
	if kept := time.Since(began); kept < keepStrangers/2 {
		t.Errorf("the zombie was kept %v only: nobody had time to read its exit code", kept)
	}
}

func TestAdoptKnowsAReusedPid(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	start, err := StartTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := Adopt(cmd.Process.Pid, start+1); ok {
		t.Error("adopted a process that began at another time")
	}
	exit, ok := Adopt(cmd.Process.Pid, start)
	if !ok {
		t.Fatal("not adopted")
	}
	cmd.Process.Signal(syscall.SIGKILL)
	select {
	case how := <-exit:
		if !how.Unknown {
			t.Errorf("the exit of somebody else's child is not known: %s", how)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no exit")
	}
	cmd.Wait()
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !is(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for ", what)
		}
	}
}

func TestFindKnowsAProcessByItsArguments(t *testing.T) {
	cmd := exec.Command("sleep", "61.25")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	until(t, "the process to be found", func() bool {
		pid, found := Find([]string{"sleep", "61.25"})
		return found && pid == cmd.Process.Pid
	})
	if pid, found := Find([]string{"sleep", "61.2"}); found {
		t.Errorf("found %d by a part of its arguments", pid)
	}
}
