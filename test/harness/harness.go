// Package harness runs real worknode binaries on the real kernel for black-box tests: a node in a network namespace of
// its own, watched through its API, killed piece by piece, and counted afterwards.
package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"worknode/kube"
	"worknode/standalone/place"
)

// Config is the node that a test wants.
type Config struct {
	Manifests map[string]string // file name below DIR -> text
	Images    []string          // names of tars below test/images or example/images
	Publish   []int             // ports of the node to publish on free ports of the host's loopback
	Flags     []string
	Root      string // where state lives; a new folder if empty
	NoWait    bool   // do not wait for the node to be Ready
	// Inside is the path of a network namespace for a node that is not isolated, whose machine it plays. The node is
	// reached by Kubectl and Worknode alone, so nothing is waited for.
	Inside string
}

// Node is a running node under test.
type Node struct {
	t     testing.TB
	Dir   string // the manifests
	Root  string
	Place place.Node
	Kube  *kube.Client
	API   int
	ports map[int]int

	inside string // Config.Inside
	args   []string

	lastError string

	supervisor *exec.Cmd
	out        *lockedBuffer

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change
	pods    map[string]*v1.Pod
	history map[string][]v1.PodStatus
}

// Top is the root of the checkout, or of what was copied into a virtual machine.
func Top() string {
	if top := os.Getenv("WORKNODE_TOP"); top != "" {
		return top
	}
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, e := os.Stat(filepath.Join(dir, "go.mod")); e == nil && filepath.Base(filepath.Dir(dir)) != "test" {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	panic("harness: not inside the checkout (set WORKNODE_TOP)")
}

// Binary returns the path of a built binary.
func Binary(t testing.TB, name string) string {
	t.Helper()
	file := filepath.Join(Top(), "bin", name)
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("%v: run `make build` first, or `make test`, which does", err)
	}
	return file
}

// Slow stretches every deadline on machines that emulate their CPU.
func Slow(d time.Duration) time.Duration {
	if f, err := strconv.Atoi(os.Getenv("WORKNODE_SLOW")); err == nil && f > 0 {
		return d * time.Duration(f)
	}
	return d
}

// Emulated says that this machine is too slow for statements about time.
func Emulated() bool { return os.Getenv("WORKNODE_SLOW") != "" }

// Start makes a node, waits until it is Ready, and removes it when the test ends, checking that nothing is left.
func Start(t testing.TB, c Config) *Node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes namespaces, mounts and cgroups")
	}
	base, err := os.MkdirTemp("", "wnt-")
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{t: t, Dir: base + "/dir", Root: base + "/r", ports: map[int]int{}, changed: make(chan struct{}), pods: map[string]*v1.Pod{}, history: map[string][]v1.PodStatus{}}
	if c.Root != "" {
		n.Root = c.Root
	}
	if n.Place, err = place.At(n.Root); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(n.Dir+"/images", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range c.Manifests {
		n.Write(name, text)
	}
	for _, name := range c.Images {
		n.AddImage(name)
	}
	n.API = FreePort(t)
	args := []string{"run", "--root", n.Root, "--api-port", strconv.Itoa(n.API)}
	if n.inside = c.Inside; n.inside == "" {
		args = append(args, "--isolated")
	}
	for _, p := range c.Publish {
		n.ports[p] = FreePort(t)
		args = append(args, "--publish", fmt.Sprintf("%d:%d", n.ports[p], p))
	}
	args = append(append(args, c.Flags...), n.Dir)
	n.out = &lockedBuffer{}
	t.Cleanup(func() {
		if t.Failed() {
			n.dump()
		}
		n.Stop()
		n.leftovers()
		if !t.Failed() {
			os.RemoveAll(base)
		}
	})
	n.launch(args)
	if !c.NoWait && c.Inside == "" {
		n.connect()
		n.WaitNode()
	}
	return n
}

func (n *Node) launch(args []string) {
	n.t.Helper()
	n.args = args
	argv := append(n.enter(Binary(n.t, "worknode")), args...)
	n.supervisor = exec.Command(argv[0], argv[1:]...)
	n.supervisor.Stdout, n.supervisor.Stderr = n.out, n.out
	// A group of its own, so that a Ctrl-C at the test does not reach the node before the test's own clean-up does.
	n.supervisor.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.supervisor.Start(); err != nil {
		n.t.Fatal(err)
	}
}

// enter prefixes a command so that it runs on the machine that the node believes to be on.
func (n *Node) enter(argv ...string) []string {
	if n.inside == "" {
		return argv
	}
	return append([]string{"nsenter", "--net=" + n.inside}, argv...)
}

// connect waits for the API and follows the pods from then on.
func (n *Node) connect() {
	n.t.Helper()
	n.Until("the kubeconfig", 20*time.Second, func() bool {
		_, err := os.Stat(n.Place.Kubeconfig())
		return err == nil
	})
	var err error
	if n.Kube, err = kube.Open(n.Place.Kubeconfig(), "harness"); err != nil {
		n.t.Fatal(err)
	}
	n.Until("the API", 20*time.Second, func() bool {
		ctx, end := context.WithTimeout(context.Background(), 2*time.Second)
		defer end()
		return n.Kube.List(ctx, kube.Namespaces, kube.Where{}, &v1.NamespaceList{}) == nil
	})
	ctx, stop := context.WithCancel(context.Background())
	n.t.Cleanup(stop)
	go kube.Follow(ctx, n.Kube, kube.Pods, kube.Where{}, n.saw)
}

func (n *Node) saw(d kube.Delta) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p, ok := d.Object.(*v1.Pod); ok {
		key := p.Namespace + "/" + p.Name
		if d.Op == kube.Delete {
			delete(n.pods, key)
		} else {
			n.pods[key] = p
			n.history[key] = append(n.history[key], p.Status)
		}
	}
	close(n.changed)
	n.changed = make(chan struct{})
}

// History is every status that the watch delivered for a pod of the default namespace.
func (n *Node) History(name string) []v1.PodStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]v1.PodStatus(nil), n.history["default/"+name]...)
}

// WaitPod waits until the pod satisfies is; nil stands for a pod that is not there.
func (n *Node) WaitPod(name, what string, within time.Duration, is func(*v1.Pod) bool) *v1.Pod {
	n.t.Helper()
	key := name
	if !strings.Contains(key, "/") {
		key = "default/" + name
	}
	deadline := time.After(Slow(within))
	for {
		n.mu.Lock()
		p, next := n.pods[key], n.changed
		n.mu.Unlock()
		if is(p) {
			return p
		}
		select {
		case <-next:
		case <-deadline:
			status, _ := json.MarshalIndent(p, "", " ")
			n.t.Fatalf("pod %s: not %s within %v; it is\n%s", name, what, Slow(within), status)
		}
	}
}

// Ready says that all of a pod's containers are.
func Ready(p *v1.Pod) bool {
	if p == nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

// Gone says that the pod is no more.
func Gone(p *v1.Pod) bool { return p == nil }

// Phase is a condition for WaitPod.
func Phase(phase v1.PodPhase) func(*v1.Pod) bool {
	return func(p *v1.Pod) bool { return p != nil && p.Status.Phase == phase }
}

// WaitReady waits until the pod is Ready.
func (n *Node) WaitReady(name string) *v1.Pod {
	n.t.Helper()
	return n.WaitPod(name, "Ready", 30*time.Second, Ready)
}

// WaitNode waits until the node reports Ready.
func (n *Node) WaitNode() {
	n.t.Helper()
	n.Until("the node to be Ready", 30*time.Second, func() bool {
		var nodes v1.NodeList
		ctx, end := context.WithTimeout(context.Background(), 2*time.Second)
		defer end()
		if n.Kube.List(ctx, kube.Nodes, kube.Where{}, &nodes) != nil || len(nodes.Items) != 1 {
			return false
		}
		for _, c := range nodes.Items[0].Status.Conditions {
			if c.Type == v1.NodeReady && c.Status == v1.ConditionTrue {
				return true
			}
		}
		return false
	})
}

// Create stores an object in the default namespace.
func (n *Node) Create(r kube.Resource, obj runtime.Object) {
	n.t.Helper()
	ctx, end := context.WithTimeout(context.Background(), Slow(10*time.Second))
	defer end()
	if err := n.Kube.Create(ctx, r, "default", obj, obj); err != nil {
		n.t.Fatalf("create %s: %v", r.Name, err)
	}
}

// Delete removes an object from the default namespace.
func (n *Node) Delete(r kube.Resource, name string) {
	n.t.Helper()
	ctx, end := context.WithTimeout(context.Background(), Slow(10*time.Second))
	defer end()
	if err := n.Kube.Delete(ctx, r, "default", name, nil); err != nil {
		n.t.Fatalf("delete %s %s: %v", r.Name, name, err)
	}
}

// Write puts a file below DIR, in one step as editors do.
func (n *Node) Write(name, text string) {
	n.t.Helper()
	file := filepath.Join(n.Dir, name)
	os.MkdirAll(filepath.Dir(file), 0o755)
	if err := os.WriteFile(file+".tmp", []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(file+".tmp", file); err != nil {
		n.t.Fatal(err)
	}
}

// AddImage puts a built image's tar into DIR/images.
func (n *Node) AddImage(name string) {
	n.t.Helper()
	for _, dir := range []string{"test/images", "example/images"} {
		file := filepath.Join(Top(), dir, name+".tar")
		if _, err := os.Stat(file); err != nil {
			continue
		}
		data, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(n.Dir, "images", name+".tar"), data, 0o644)
		}
		if err != nil {
			n.t.Fatal(err)
		}
		return
	}
	n.t.Fatalf("image %s.tar is neither in test/images nor in example/images: `make test` builds both", name)
}

// Port is where a published port of the node answers on the host.
func (n *Node) Port(node int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(n.ports[node]))
}

// Worknode runs one of the user's commands and returns stdout and its exit code.
func (n *Node) Worknode(args ...string) (stdout string, code int) {
	n.t.Helper()
	argv := append(n.enter(Binary(n.t, "worknode"), args[0], "--root", n.Root), args[1:]...)
	out, errs, code := Command(n.t, argv[0], argv[1:]...)
	if code != 0 && errs != "" && errs != n.lastError { // polls repeat themselves
		n.lastError = errs
		n.t.Logf("worknode %s: %s", strings.Join(args, " "), strings.TrimSpace(errs))
	}
	return out, code
}

// Kubectl runs upstream's kubectl against the node.
func (n *Node) Kubectl(args ...string) (stdout, stderr string, code int) {
	n.t.Helper()
	argv := append(n.enter(Binary(n.t, "kubectl"), "--kubeconfig", n.Place.Kubeconfig(), "--cache-dir", n.Root+"/kubectl"), args...)
	return Command(n.t, argv[0], argv[1:]...)
}

// Command runs a program to its end.
func Command(t testing.TB, file string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, end := context.WithTimeout(context.Background(), Slow(60*time.Second))
	defer end()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, file, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%s %v hangs; it said %s%s", filepath.Base(file), args, out.String(), errs.String())
	}
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// Output is what the supervisor printed so far.
func (n *Node) Output() string { return n.out.String() }

// Until polls for what no watch tells.
func (n *Node) Until(what string, within time.Duration, is func() bool) {
	n.t.Helper()
	Until(n.t, what, within, is)
}

// Until polls for what no event tells, and says what was missing.
func Until(t testing.TB, what string, within time.Duration, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(Slow(within)); !is(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain for %s", Slow(within), what)
		}
	}
}

// FreePort finds a port that nobody listens on.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
