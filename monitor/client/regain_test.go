package client

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"worknode/fault"
	"worknode/kernel/pidfd"
)

// A pipe that is open both ways is the monitor's; one that the container made itself, as for a shell's pipeline, is not.
func TestRegainTakesOurPipesAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("reading another process's descriptors needs root; run these tests as root")
	}
	ours, ourEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	theirs, theirEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	both, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", ourEnd.Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "echo kept; exec sleep 600")
	cmd.Stdout, cmd.Stderr = both, theirEnd
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	closeAll([]*os.File{ourEnd, both, theirEnd, ours}) // nobody but the process holds ours
	defer theirs.Close()
	start, err := pidfd.StartTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Regain(cmd.Process.Pid, start+1); !fault.Is(err, fault.NotFound) {
		t.Errorf("another process of the same pid: %v", err)
	}
	files, names, err := Regain(cmd.Process.Pid, start)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(files)
	if !slices.Equal(names, []string{"pidfd", "stdout", "journal"}) {
		t.Fatalf("found %v", names)
	}
	text := make([]byte, 16)
	if n, err := files[1].Read(text); err != nil || string(text[:n]) != "kept\n" {
		t.Errorf("read %q, %v", text[:n], err)
	}
}
