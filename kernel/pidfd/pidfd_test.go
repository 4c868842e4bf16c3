package pidfd

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

func start(t *testing.T, script string) (*exec.Cmd, *os.File) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); f.Close() })
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, f
}

// The code of a process is known to any holder of its descriptor: as a zombie, and after its parent has taken it.
func TestExitStatusBeforeAndAfterReaping(t *testing.T) {
	cmd, f := start(t, "exec sleep 1000")
	if _, err := ExitStatus(f, cmd.Process.Pid); !fault.Is(err, fault.Busy) {
		t.Errorf("status of a running process: %v, want busy", err)
	}
	if err := Signal(f, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := Wait(f); err != nil {
		t.Fatal(err)
	}
	st, err := ExitStatus(f, cmd.Process.Pid)
	if err != nil || !st.Signaled() || st.Signal() != unix.SIGTERM {
		t.Errorf("zombie's status %v (%v), want SIGTERM", st, err)
	}
	cmd.Wait()
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	keeps := unix.IoctlPidfdInfo(int(f.Fd()), &info) == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0
	st, err = ExitStatus(f, cmd.Process.Pid)
	if keeps && (err != nil || !st.Signaled() || st.Signal() != unix.SIGTERM) {
		t.Errorf("status after reaping %v (%v), want SIGTERM", st, err)
	}
	if !keeps && !fault.Is(err, fault.NotFound) {
		t.Errorf("a kernel without PIDFD_INFO_EXIT: %v, want not found", err)
	}
	if err := Signal(f, unix.SIGTERM); !fault.Is(err, fault.NotFound) {
		t.Errorf("signal after reaping: %v, want not found", err)
	}
}

func TestStatReadsOddNames(t *testing.T) {
	self, err := ReadStat(os.Getpid())
	if err != nil || self.PPid != os.Getppid() || self.StartTime == 0 {
		t.Fatalf("own stat %+v (%v)", self, err)
	}
	name := t.TempDir() + "/a) R (b"
	sh, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, sh, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name)
	cmd.Args = []string{"sleep", "1000"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	st, err := ReadStat(cmd.Process.Pid)
	if err != nil || st.Comm != "a) R (b" || st.PPid != os.Getpid() {
		t.Errorf("stat %+v (%v)", st, err)
	}
	if _, err := ReadStat(1 << 22); !fault.Is(err, fault.NotFound) {
		t.Errorf("no such process: %v", err)
	}
}
