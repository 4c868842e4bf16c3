package bed

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/kube"
	"worknode/test/harness"
)

var shared struct {
	sync.Mutex
	cluster *Cluster
}

// Main runs the tests of a package and ends what they shared.
func Main(m *testing.M) int {
	code := m.Run()
	if c := shared.cluster; c != nil {
		_ = c.Down()
	}
	return code
}

// Shared is the control plane that the tests of a package share, started by the first. TestMain must call Main.
// A test leaves no objects behind in it.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil {
		shared.cluster = bring(t, strconv.Itoa(os.Getpid()), Config{})
	}
	c := shared.cluster
	t.Cleanup(func() { c.tell(t) })
	return c
}

var own int

// Start makes a control plane for one test.
func Start(t testing.TB, config Config) *Cluster {
	t.Helper()
	own++
	c := bring(t, strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(own), config)
	t.Cleanup(func() {
		c.tell(t)
		if err := c.Down(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// StartSelf makes a machine with nothing but worknode, which runs a control plane as static pods and has joined it.
func StartSelf(t testing.TB) (*Cluster, *Node) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes namespaces, mounts and cgroups")
	}
	sweep()
	dir, err := os.MkdirTemp("", "bed-")
	if err != nil {
		t.Fatal(err)
	}
	own++
	c, n, err := UpSelf(dir, strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(own))
	t.Cleanup(func() {
		if t.Failed() && n != nil {
			for _, p := range n.Parts() {
				t.Log(p.Said())
			}
		}
		if err := c.Down(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	c.pods = follow(c.Kube)
	return c, n
}

func bring(t testing.TB, name string, config Config) *Cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes namespaces, mounts and cgroups")
	}
	sweep()
	dir, err := os.MkdirTemp("", "bed-")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Up(dir, name, config)
	if err != nil {
		_ = c.Down()
		t.Fatal(err)
	}
	c.pods = follow(c.Kube)
	return c
}

// tell prints what a person would look at first, if the test failed.
func (c *Cluster) tell(t testing.TB) {
	if !t.Failed() {
		return
	}
	for _, p := range []*Process{c.API, c.Manager, c.Schedule} {
		if p != nil && !p.Alive() {
			t.Log(p.Said())
		}
	}
}

// Node starts a node that is removed when the test ends.
func (c *Cluster) Node(t testing.TB, config NodeConfig) *Node {
	t.Helper()
	n, err := c.AddNode(config)
	if n != nil {
		t.Cleanup(func() {
			if t.Failed() {
				for _, p := range n.Parts() {
					t.Log(n.Name + ": " + p.Said())
				}
			}
			if n.space == nil {
				return
			}
			if err := n.Remove(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Kubectl runs upstream's kubectl as an administrator, with text as its standard input.
func (c *Cluster) Kubectl(t testing.TB, text string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, end := context.WithTimeout(context.Background(), harness.Slow(90*time.Second))
	defer end()
	argv := c.core.enter(append([]string{Program("kubectl"), "--kubeconfig", c.Kubeconfig("admin"), "--cache-dir", c.Dir + "/kubectl"}, args...)...)
	var out, errs strings.Builder
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("kubectl %v hangs; it said %s%s", args, out.String(), errs.String())
	}
	if _, exited := err.(*exec.ExitError); err != nil && !exited { //nolint:errorlint // os/exec returns it bare
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// Must is Kubectl for what has to succeed; it returns stdout.
func (c *Cluster) Must(t testing.TB, args ...string) string {
	t.Helper()
	out, errs, code := c.Kubectl(t, "", args...)
	if code != 0 {
		t.Fatalf("kubectl %s: %s", strings.Join(args, " "), errs)
	}
	return out
}

// Apply applies manifests, and deletes them when the test ends.
func (c *Cluster) Apply(t testing.TB, manifests string) {
	t.Helper()
	if _, errs, code := c.Kubectl(t, manifests, "apply", "-f", "-"); code != 0 {
		t.Fatalf("kubectl apply: %s", errs)
	}
	t.Cleanup(func() {
		_, errs, code := c.Kubectl(t, manifests, "delete", "--ignore-not-found", "--wait=false", "--grace-period=0", "--force", "-f", "-")
		if code != 0 {
			t.Errorf("kubectl delete: %s", errs)
		}
	})
}

// WaitPod waits until the pod, NAMESPACE/NAME, satisfies is; nil stands for a pod that is not there.
func (c *Cluster) WaitPod(t testing.TB, key, what string, within time.Duration, is func(*v1.Pod) bool) *v1.Pod {
	t.Helper()
	p, ok := c.pods.wait(key, harness.Slow(within), is)
	if !ok {
		status, _ := json.MarshalIndent(p, "", " ")
		events, _, _ := c.Kubectl(t, "", "get", "events", "-A")
		t.Fatalf("pod %s: not %s within %v; it is\n%s\n%s", key, what, harness.Slow(within), status, events)
	}
	return p
}

// Pods are all pods that is accepts now, as last seen.
func (c *Cluster) Pods(is func(*v1.Pod) bool) (all []*v1.Pod) {
	c.pods.mu.Lock()
	defer c.pods.mu.Unlock()
	for _, p := range c.pods.pods {
		if is(p) {
			all = append(all, p)
		}
	}
	return all
}

// follower knows every pod of the cluster.
type follower struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change
	pods    map[string]*v1.Pod
}

func follow(client *kube.Client) *follower {
	f := &follower{changed: make(chan struct{}), pods: map[string]*v1.Pod{}}
	go kube.Follow(context.Background(), client, kube.Pods, kube.Where{}, f.saw) // to the end of the tests
	return f
}

func (f *follower) saw(d kube.Delta) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p, ok := d.Object.(*v1.Pod); ok {
		key := p.Namespace + "/" + p.Name
		if d.Op == kube.Delete {
			delete(f.pods, key)
		} else {
			f.pods[key] = p
		}
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *follower) wait(key string, within time.Duration, is func(*v1.Pod) bool) (*v1.Pod, bool) {
	deadline := time.After(within)
	for {
		f.mu.Lock()
		p, next := f.pods[key], f.changed
		f.mu.Unlock()
		if is(p) {
			return p, true
		}
		select {
		case <-next:
		case <-deadline:
			return p, false
		}
	}
}
