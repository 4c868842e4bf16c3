// Package crash kills the node's processes one by one while an application is under load, and looks for damage.
package crash

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"worknode/kube"
	"worknode/test/harness"
)

const image = "worknode.test/app:1"

func app(name string, args ...string) *v1.Pod {
	grace := int64(2)
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: v1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []v1.Container{{Name: "main", Image: image, Command: append([]string{"/app"}, args...)}},
		},
	}
}

// load asks a Service all the time, over kept and over new connections, from inside the node's network as a client on
// another machine would: the forwarder of the supervisor is not part of what is tested.
type load struct {
	asked, failed atomic.Int64
	mu            sync.Mutex
	first         string // first error
	stop          context.CancelFunc
	done          sync.WaitGroup
}

func startLoad(n *harness.Node, address string) *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{stop: stop}
	dial := func(ctx context.Context, _, addr string) (net.Conn, error) { return n.Dial(addr) }
	for _, fresh := range []bool{true, false} {
		client := &http.Client{Timeout: harness.Slow(5 * time.Second), Transport: &http.Transport{DialContext: dial, DisableKeepAlives: fresh}}
		l.done.Go(func() {
			for ctx.Err() == nil {
				l.asked.Add(1)
				if err := ask(client, "http://"+address+"/"); err != nil {
					l.failed.Add(1)
					l.mu.Lock()
					if l.first == "" {
						l.first = err.Error()
					}
					l.mu.Unlock()
				}
			}
		})
	}
	return l
}

func ask(client *http.Client, url string) error {
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", answer.Status)
	}
	return nil
}

func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	l.done.Wait()
	t.Logf("%d requests, %d failed", l.asked.Load(), l.failed.Load())
	enough := int64(100)
	if harness.Emulated() {
		enough = 20
	}
	if l.failed.Load() > 0 || l.asked.Load() < enough {
		t.Errorf("%d of %d requests failed, the first with: %s", l.failed.Load(), l.asked.Load(), l.first)
	}
}

func TestKillUnderLoad(t *testing.T) {
	n := harness.Start(t, harness.Config{Images: []string{"app"}})
	n.Create(kube.Services, &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: v1.ServiceSpec{
		ClusterIP: "10.96.0.80", Selector: map[string]string{"app": "web"}, Ports: []v1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
	}})
	n.Create(kube.Pods, app("web", "serve"))
	n.Create(kube.Pods, app("talker", "lines", "100000000", "2000"))
	web := n.WaitReady("web")
	talker := n.WaitReady("talker")
	n.Until("the Service to answer", 5*time.Second, func() bool {
		conn, err := n.Dial("10.96.0.80:80")
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	for _, victim := range []string{"runtime", "kubelet", "proxy", "supervisor", "monitor"} {
		t.Run(victim, func(t *testing.T) {
			name := "during-" + victim
			ending := app(name, "exit", "9", "1")
			ending.Spec.RestartPolicy = v1.RestartPolicyNever
			n.Create(kube.Pods, ending)
			n.WaitPod(name, "running", 20*time.Second, harness.Phase(v1.PodRunning))
			before := len(n.History("web"))
			l := startLoad(n, "10.96.0.80:80")
			n.Kill(victim)
			p := n.WaitPod(name, "failed", 20*time.Second, harness.Phase(v1.PodFailed))
			l.end(t)
			end := p.Status.ContainerStatuses[0].State.Terminated
			if end == nil || end.ExitCode == 0 {
				t.Errorf("exit while %s was away: %+v", victim, end)
			} else if end.ExitCode != 9 && !(victim == "monitor" && !harness.ExitsOutliveTheMonitor()) {
				t.Errorf("exit code %d (%s) was lost with %s, want 9", end.ExitCode, end.Reason, victim)
			}
			for _, st := range n.History("web")[before:] {
				if !harness.Ready(&v1.Pod{Status: st}) {
					t.Errorf("web was reported not ready: %+v", st.Conditions)
				}
			}
			for _, was := range []*v1.Pod{web, talker} {
				now := n.WaitReady(was.Name)
				if a, b := was.Status.ContainerStatuses[0], now.Status.ContainerStatuses[0]; a.ContainerID != b.ContainerID || b.RestartCount != 0 {
					t.Errorf("%s was restarted: %s became %s", was.Name, a.ContainerID, b.ContainerID)
				}
			}
			// New pods start, exec and logs work at once.
			n.Create(kube.Pods, app("after-"+victim, "serve"))
			n.WaitReady("after-" + victim)
			if out, code := n.Worknode("exec", "web", "--", "/bin/sh", "-c", "echo alive"); out != "alive\n" || code != 0 {
				t.Errorf("exec says %q, code %d", out, code)
			}
		})
	}
	noLineLost(t, n)
}

// noLineLost reads the talker's whole log: every number once, in order, none torn.
func noLineLost(t *testing.T, n *harness.Node) {
	t.Helper()
	out, code := n.Worknode("logs", "talker")
	if code != 0 {
		t.Fatalf("logs: exit code %d", code)
	}
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) < 1000 {
		t.Fatalf("only %d lines", len(lines))
	}
	for i, line := range lines {
		if line != "line "+strconv.Itoa(i+1) {
			t.Fatalf("line %d of %d is %q: lost, doubled or torn", i+1, len(lines), line)
		}
	}
	t.Logf("%d lines, none lost", len(lines))
}

// A killed supervisor leaves the pods running; the next start finds them.
func TestKilledNodeIsAdopted(t *testing.T) {
	n := harness.Start(t, harness.Config{Images: []string{"app"}})
	n.Create(kube.Pods, app("web", "serve"))
	n.Create(kube.Pods, app("talker", "lines", "100000000", "2000"))
	was, talker := n.WaitReady("web"), n.WaitReady("talker")
	n.Until("the pod to answer", 5*time.Second, func() bool { _, err := n.Ask(net.JoinHostPort(was.Status.PodIP, "8080")); return err == nil })
	for _, name := range []string{"kubelet", "proxy", "runtime", "monitor"} {
		if err := syscall.Kill(n.Pid(name), syscall.SIGSTOP); err != nil { // so that nobody repairs anything meanwhile
			t.Fatal(err)
		}
	}
	pids := []int{n.Pid("supervisor"), n.Pid("kubelet"), n.Pid("proxy"), n.Pid("runtime"), n.Pid("monitor")}
	n.KillAll(pids)
	conn, err := n.Dial(net.JoinHostPort(was.Status.PodIP, "8080"))
	if err != nil {
		t.Fatalf("the pod does not answer while its node is dead: %v", err)
	}
	conn.Close()
	n.Relaunch()
	n.Create(kube.Pods, app("after", "serve"))
	n.WaitReady("after")
	for _, was := range []*v1.Pod{was, talker} {
		now := n.WaitReady(was.Name)
		if a, b := was.Status.ContainerStatuses[0], now.Status.ContainerStatuses[0]; a.ContainerID != b.ContainerID || b.RestartCount != 0 {
			t.Errorf("%s was restarted: %s became %s", was.Name, a.ContainerID, b.ContainerID)
		}
	}
	// What was written while nobody was there is in the log, too. Only what was being logged at that moment may be twice.
	last, again := 0, 0
	n.Until("the talker to be heard again", 10*time.Second, func() bool {
		out, _ := n.Worknode("logs", "talker", "--tail", "1")
		number, _ := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(out), "line "))
		if last == 0 {
			last = number
		}
		return number > last+1000
	})
	out, _ := n.Worknode("logs", "talker")
	at := 0
	for line := range strings.Lines(out) {
		number, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(line), "line "))
		if err != nil || number > at+1 {
			t.Fatalf("after line %d: %q", at, line)
		}
		if number <= at {
			again++
		}
		at = number
	}
	t.Logf("%d lines, %d of them twice", at, again)
	if again > 5000 {
		t.Errorf("%d lines are in the log twice", again)
	}
}

// A supervisor that was killed before it wrote a pid file down leaves a process that the next one must find: two proxies
// or kubelets would fight.
func TestAProcessWithoutPidFileIsFound(t *testing.T) {
	n := harness.Start(t, harness.Config{Images: []string{"app"}})
	n.Create(kube.Pods, app("web", "serve"))
	n.WaitReady("web")
	old := n.Pid("proxy")
	n.KillAll([]int{n.Pid("supervisor")})
	if err := os.Remove(n.Place.Pid("proxy")); err != nil {
		t.Fatal(err)
	}
	n.Relaunch()
	n.Until("one proxy, and only one", 20*time.Second, func() bool {
		now := n.Pid("proxy")
		return now != 0 && now != old && syscall.Kill(old, 0) != nil
	})
	n.Create(kube.Pods, app("after", "serve"))
	n.WaitReady("after")
}
