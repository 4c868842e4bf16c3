package node

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/kube"
	"worknode/test/harness"
)

// follow runs a command and delivers its output line by line; the channel closes when the command ends.
func follow(t *testing.T, file string, args ...string) <-chan string {
	t.Helper()
	cmd := exec.Command(file, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1<<20)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
		cmd.Wait()
	}()
	t.Cleanup(func() { cmd.Process.Kill(); <-done })
	return lines
}

// next waits for one line of a followed command.
func next(t *testing.T, lines <-chan string, what string) (string, bool) {
	t.Helper()
	select {
	case line, open := <-lines:
		return line, open
	case <-time.After(harness.Slow(30 * time.Second)):
		t.Fatalf("waited in vain for %s", what)
		return "", false
	}
}

// A log of any size is cut into files of bounded number and size, and who follows it misses nothing.
func TestLogRotationLosesNoLine(t *testing.T) {
	const lines, width = 250_000, 120 // 30 MB, and as many bytes again for what CRI writes before each line
	n := start(t, harness.Config{})
	script := fmt.Sprintf(`while [ ! -e /tmp/go ]; do sleep 0.05; done; awk 'BEGIN { for (i = 1; i <= %d; i++) printf "%%0%dd\n", i }'; echo end; exec /app wait > /dev/null`, lines, width)
	n.Create(kube.Pods, pod("chatty", script))
	p := n.WaitReady("chatty")
	got := follow(t, harness.Binary(t, "worknode"), "logs", "--root", n.Root, "-f", "chatty")
	sh(t, n, "chatty", "touch /tmp/go")
	for i := 1; i <= lines; i++ {
		if line, _ := next(t, got, fmt.Sprint("line ", i)); line != fmt.Sprintf("%0*d", width, i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
	if line, _ := next(t, got, "the end"); line != "end" {
		t.Fatalf("after the last line: %q", line)
	}
	dir := filepath.Join(n.Place.PodLogs(), "default_chatty_"+string(p.UID), "main")
	n.Until("the logs to be rotated into few small files", 30*time.Second, func() bool {
		files, _ := os.ReadDir(dir)
		if len(files) < 2 || len(files) > 5 {
			return false
		}
		live, err := os.Stat(dir + "/0.log")
		return err == nil && live.Size() < 11<<20
	})
	n.Delete(kube.Pods, "chatty")
	n.WaitPod("chatty", "gone", 10*time.Second, harness.Gone)
	n.Until("the logs to go", 5*time.Second, func() bool {
		_, err := os.Stat(filepath.Dir(dir))
		return os.IsNotExist(err)
	})
}

// Following ends with the container; the log of the run before stays readable; a log can be read since, and by its tail.
func TestLogsAcrossARestart(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.Pods, pod("phoenix", "echo first; test -e /data/once && { echo again; exec /app wait > /dev/null; }; touch /data/once; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo dying; exit 1", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "data", MountPath: "/data"}}
	}))
	n.WaitReady("phoenix")
	got := follow(t, harness.Binary(t, "kubectl"), "--kubeconfig", n.Place.Kubeconfig(), "logs", "-f", "phoenix")
	if line, _ := next(t, got, "the first line"); line != "first" {
		t.Errorf("followed: %q", line)
	}
	sh(t, n, "phoenix", "touch /tmp/go") // not before kubectl follows
	if line, _ := next(t, got, "the last line"); line != "dying" {
		t.Errorf("followed: %q, want %q", line, "dying")
	}
	if line, open := next(t, got, "the end of the log"); open {
		t.Errorf("following goes on after the container ended: %q", line)
	}
	n.WaitPod("phoenix", "restarted", 10*time.Second, restarted(1))
	logged(t, n, "phoenix", "again")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"logs", "phoenix"}, "first\nagain\n"},
		{[]string{"logs", "phoenix", "--previous"}, "first\ndying\n"},
		{[]string{"logs", "phoenix", "--tail=1"}, "again\n"},
		{[]string{"logs", "phoenix", "--since=1h"}, "first\nagain\n"},
		{[]string{"logs", "phoenix", "--since-time=2199-01-01T00:00:00Z"}, ""},
		{[]string{"logs", "phoenix", "--limit-bytes=3"}, "fir"},
		{[]string{"logs", "-l", "app=phoenix", "--prefix"}, "[pod/phoenix/main] first\n[pod/phoenix/main] again\n"},
	} {
		if out := kubectl(t, n, c.args...); out != c.want {
			t.Errorf("kubectl %s: %q, want %q", strings.Join(c.args, " "), out, c.want)
		}
	}
	if out := kubectl(t, n, "logs", "phoenix", "--timestamps", "--tail=1"); !strings.HasPrefix(out, "20") || !strings.HasSuffix(out, "Z again\n") {
		t.Errorf("with timestamps: %q", out)
	}
	for name, args := range map[string][]string{
		"a container that is not there": {"logs", "phoenix", "-c", "ghost"},
		"a pod that is not there":       {"logs", "ghost"},
	} {
		if _, errs, code := n.Kubectl(args...); code == 0 || !strings.Contains(errs, "ghost") || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: exit code %d, said %q", name, code, errs)
		}
	}
}

// Whatever a program writes comes back as it was; a last line that has no end gets one, as a log has whole lines only.
func TestLogsKeepEveryByte(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.Pods, pod("odd", `head -c 100000 /dev/zero | tr '\0' x; echo; printf '\001\377\r\n\n'; printf 'no end'`, never))
	n.WaitPod("odd", "succeeded", 15*time.Second, harness.Phase(v1.PodSucceeded))
	out, _, _ := n.Kubectl("logs", "odd")
	if want := strings.Repeat("x", 100000) + "\n\001\377\r\n\nno end\n"; out != want {
		t.Errorf("%d bytes, want %d; the end is %q", len(out), len(want), out[max(0, len(out)-20):])
	}
}
