package net

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/kube"
	"worknode/proxy"
	"worknode/proxy/config"
)

const childEnv = "WORKNODE_TEST_PROXY"

// TestMain is the tests, or in a child process the proxy.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := config.Parse("test", []byte(os.Getenv(childEnv)), false)
	if err != nil {
		slog.Error("options", "err", err)
		os.Exit(2)
	}
	if err := proxy.RunFeed(ctx, proxy.Options{Config: c}, stdin{}); err != nil {
		slog.Error("proxy", "err", err)
		os.Exit(1)
	}
}

// line is one delta on its way to the child.
type line struct {
	Op      kube.Op
	Service *corev1.Service            `json:",omitempty"`
	Slice   *discoveryv1.EndpointSlice `json:",omitempty"`
	Node    *corev1.Node               `json:",omitempty"`
}

// stdin is the child's feed.
type stdin struct{}

func (stdin) Follow(ctx context.Context, send func(kube.Delta)) {
	d := json.NewDecoder(bufio.NewReaderSize(os.Stdin, 1<<20))
	for {
		var l line
		if err := d.Decode(&l); err != nil {
			slog.Error("the tests are gone", "err", err)
			os.Exit(3) // the table stays, as after any death
		}
		out := kube.Delta{Op: l.Op}
		switch {
		case l.Service != nil:
			out.Object = l.Service
		case l.Slice != nil:
			out.Object = l.Slice
		case l.Node != nil:
			out.Object = l.Node
		}
		send(out)
	}
}

// options are what a test wants of the configuration. The servers get ports that no test asks unless it says so.
type options struct {
	ClusterCIDR              []string
	NodePortAddresses        []string
	HealthzAddr, MetricsAddr string
}

func (o options) config() string {
	c := config.Default()
	c.Mode, c.HostnameOverride, c.ClusterCIDR, c.NodePortAddresses = config.ModeNFTables, "node", strings.Join(o.ClusterCIDR, ","), o.NodePortAddresses
	if o.HealthzAddr != "" {
		c.HealthzBindAddress, c.MetricsBindAddress = o.HealthzAddr, o.MetricsAddr
	}
	text, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// node is a proxy process in a lab, and the API it sees.
type node struct {
	*lab
	o     options
	cmd   *exec.Cmd
	in    io.WriteCloser
	enc   *json.Encoder
	log   *logs
	ended chan struct{}

	services map[string]*corev1.Service
	slices   map[string]*discoveryv1.EndpointSlice
}

func newNode(t testing.TB, o options) *node {
	if o.ClusterCIDR == nil {
		o.ClusterCIDR = []string{podCIDR}
	}
	n := &node{lab: newLab(t), o: o, services: map[string]*corev1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{}}
	t.Cleanup(n.kill)
	return n
}

// start runs the proxy and tells it all there is.
func (n *node) start() {
	n.t.Helper()
	n.cmd = exec.Command("ip", "netns", "exec", n.prefix+"node", "/proc/self/exe")
	exe, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	n.cmd.Args[len(n.cmd.Args)-1] = exe
	n.cmd.Env = append(os.Environ(), childEnv+"="+n.o.config())
	n.log = &logs{}
	n.cmd.Stderr = n.log
	if n.in, err = n.cmd.StdinPipe(); err != nil {
		n.t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	w := bufio.NewWriter(n.in)
	n.enc = json.NewEncoder(w)
	for _, s := range n.services {
		n.send(line{Op: kube.Put, Service: s})
	}
	for _, s := range n.slices {
		n.send(line{Op: kube.Put, Slice: s})
	}
	n.send(line{Op: kube.Synced})
	w.Flush()
	n.enc = json.NewEncoder(n.in)
	cmd, ended := n.cmd, make(chan struct{})
	n.ended = ended
	go func() { cmd.Wait(); close(ended) }()
}

// kill ends the proxy as an out-of-memory kill would. `ip netns exec` is the proxy: it execs.
func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	n.cmd.Process.Kill()
	<-n.ended
	if n.t.Failed() {
		n.t.Logf("proxy log:\n%s", n.log)
	}
	n.cmd = nil
}

func (n *node) send(l line) {
	n.t.Helper()
	if err := n.enc.Encode(l); err != nil {
		n.t.Fatalf("feed: %v; proxy says:\n%s", err, n.log)
	}
}

// logs collects what a process writes while others read it.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type port struct {
	proto    corev1.Protocol
	port     int32
	nodePort int32
}

// service puts a Service; each port is named after itself.
func (n *node) service(name, vip string, ports ...port) {
	n.t.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	s.Spec.ClusterIP, s.Spec.ClusterIPs = vip, []string{vip}
	for _, p := range ports {
		if p.nodePort != 0 {
			s.Spec.Type = corev1.ServiceTypeNodePort
		}
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint(p.proto, p.port), Protocol: p.proto, Port: p.port, NodePort: p.nodePort})
	}
	n.services[name] = s
	n.send(line{Op: kube.Put, Service: s})
}

func (n *node) deleteService(name string) {
	if s := n.services[name]; s != nil {
		delete(n.services, name)
		n.send(line{Op: kube.Delete, Service: s})
	}
}

type endpoint struct {
	addr  string
	ready *bool
	local bool
}

func up(addrs ...string) (out []endpoint) {
	for _, a := range addrs {
		out = append(out, endpoint{addr: a})
	}
	return out
}

// endpoints puts the one slice of a Service, all of whose ports lead to target.
func (n *node) endpoints(name string, target int32, eps ...endpoint) {
	n.t.Helper()
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}}}
	if svc := n.services[name]; svc != nil {
		for _, p := range svc.Spec.Ports {
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &target})
		}
	}
	for _, e := range eps {
		host := "elsewhere"
		if e.local {
			host = "node"
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{e.addr}, NodeName: &host,
			Conditions: discoveryv1.EndpointConditions{Ready: e.ready}})
	}
	n.slices[name] = s
	n.send(line{Op: kube.Put, Slice: s})
}

func (n *node) deleteEndpoints(name string) {
	if s := n.slices[name]; s != nil {
		delete(n.slices, name)
		n.send(line{Op: kube.Delete, Slice: s})
	}
}

// reaches waits until connections go to each of the endpoints and to no other, and returns the clients they saw.
func (n *node) reaches(ns, to string, want ...string) (clients map[string]bool) {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("%s → %s should reach %v", ns, to, want), func() error {
		clients = map[string]bool{}
		got := map[string]bool{}
		for range 20 * len(want) {
			r, err := n.connect(ns, to)
			if err != nil {
				return err
			}
			got[r.endpoint.Addr().String()] = true
			clients[r.client.Addr().String()] = true
			if len(got) == len(want) && len(want) > 1 && len(clients) > 0 {
				break
			}
		}
		for _, w := range want {
			if !got[w] {
				return fmt.Errorf("never reached %s, only %v", w, got)
			}
			delete(got, w)
		}
		if len(got) > 0 {
			return fmt.Errorf("also reached %v", got)
		}
		return nil
	})
	return clients
}

// refused waits until connections are refused, and checks that this is no timeout.
func (n *node) refused(ns, to string) {
	n.t.Helper()
	try := func() error {
		_, err := n.connect(ns, to)
		if err == nil {
			return fmt.Errorf("it connects")
		}
		if !strings.Contains(err.Error(), "connection refused") {
			return err
		}
		return nil
	}
	eventually(n.t, fmt.Sprintf("%s → %s should be refused", ns, to), try)
	// Now that the rules are there (a first packet may have been before them), it takes no retransmission, however
	// often a client tries.
	for range 20 {
		began := time.Now()
		if err := try(); err != nil {
			n.t.Errorf("%s → %s should be refused: %v", ns, to, err)
		}
		if took := time.Since(began); took > 500*time.Millisecond {
			n.t.Errorf("%s → %s: refused only after %v", ns, to, took)
		}
	}
}
