package standalone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"worknode/fault"
	"worknode/kernel/island"
	"worknode/kernel/netns"
	"worknode/kernel/reap"
	"worknode/standalone/place"
	"worknode/task"
)

// Options is what `worknode run` was asked for.
type Options struct {
	Dir      string // manifests, and images/*.tar
	Root     string // where state lives; empty: the machine's usual places
	Isolated bool   // the whole node in a network namespace of its own, without uplink
	Publish  []Publish
	Build    string // this build; processes of another are replaced

	NodeName    string
	APIPort     int // on loopback, and on the node's address
	KubeletPort int
	HealthPorts [2]int // kubelet, proxy
	PodCIDR     netip.Prefix
	ServiceCIDR netip.Prefix
	Bridge      string
}

// The network of an isolated node. Every isolated node has the same: they never meet.
var (
	islandAddr    = netip.MustParsePrefix("10.77.0.1/24")
	islandGateway = netip.MustParseAddr("10.77.0.254")
)

// node is one running standalone node.
type node struct {
	Options
	place  place.Node
	self   string // path of this binary
	build  string
	netns  string // path of the node's network namespace; empty: the host's
	ip     netip.Addr
	reaper *reap.Reaper
	tasks  *task.Group
}

// Run brings a standalone node up and keeps it up until ctx ends; then it ends the pods gracefully and removes all that
// the node left on the machine except its state. A killed supervisor removes nothing: the next one adopts what runs.
func Run(ctx context.Context, o Options) error {
	if err := preflight(); err != nil {
		return err
	}
	if st, err := os.Stat(o.Dir); err != nil {
		return fault.Hint(fmt.Errorf("manifest folder: %w", err), "name a folder that holds manifests, and images as images/*.tar")
	} else if !st.IsDir() {
		return fault.New(fault.Invalid, "manifest folder %s: it is a file (name the folder that holds it)", o.Dir)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return fmt.Errorf("manifest folder %s: %w", o.Dir, err)
	}
	o.Dir = dir
	at, err := place.At(o.Root)
	if err != nil {
		return err
	}
	if err := at.Make(); err != nil {
		return err
	}
	unlock, err := lock(at.Lock())
	if err != nil {
		return err
	}
	defer unlock()
	n := &node{Options: o, place: at, build: o.Build}
	if n.self, err = os.Executable(); err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	return n.run(ctx)
}

func (n *node) run(ctx context.Context) error {
	// What the node is made of outlives ctx: after it ends, the pods are still to be ended by the very same parts.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var err error
	if n.reaper, err = reap.New(life); err != nil {
		return err
	}
	n.tasks = task.New(life)
	api, err := n.open(life)
	if err != nil {
		n.retreat()
		return err
	}
	keeping, stopKeeping := context.WithCancel(life)
	defer stopKeeping()
	keepers := task.New(keeping)
	for _, s := range n.services() {
		keepers.Go(s.name, func(ctx context.Context) { n.keep(ctx, s) })
	}
	n.announce()

	<-ctx.Done()
	slog.Info("ending the pods; a second signal ends at once and leaves them running")
	api.drain(time.Minute)
	keepers.Stop()
	n.clean()
	end()
	n.tasks.Wait()
	return nil
}

// open brings up what the processes need: the network, certificates, the API and the published ports.
func (n *node) open(ctx context.Context) (*local, error) {
	if err := n.openNetwork(); err != nil {
		return nil, err
	}
	if err := n.issueCertificates(time.Now()); err != nil {
		return nil, err
	}
	api, err := n.openAPI(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range n.Publish {
		if err := n.forward(ctx, p); err != nil {
			return nil, err
		}
	}
	return api, nil
}

// retreat removes the network of a node that did not come up, unless processes of an earlier start live in it.
func (n *node) retreat() {
	if n.netns == "" {
		return
	}
	for _, s := range n.services() {
		if _, err := os.Stat(n.place.Pid(s.name)); err == nil {
			return
		}
	}
	if err := island.Remove(n.place.Netns()); err != nil {
		slog.Error("the node's network namespace stays behind", "err", err)
	}
}

// services are the node's processes, by the flags that a person would use to start them by hand.
func (n *node) services() []service {
	p := n.place
	return []service{
		{"runtime", []string{"runtime", "--root", p.Runtime(), "--run", p.Run + "/runtime", "--socket", p.RuntimeSocket(),
			"--images", n.Dir + "/images", "--cgroup", p.Group, "--bridge", n.Bridge, "--pod-cidr", n.PodCIDR.String()}},
		{"proxy", []string{"proxy", "--kubeconfig", p.ClientConfig("proxy"), "--hostname-override", n.NodeName,
			"--proxy-mode", "nftables", "--cluster-cidr", n.PodCIDR.String(), "--healthz-port", strconv.Itoa(n.HealthPorts[1]), "--metrics-port", "0",
			"--dns-address", n.at(dnsPort), "--dns-domain", clusterDomain, "--dns-resolv-conf", n.resolvConf()}},
		{"kubelet", []string{"kubelet", "--kubeconfig", p.ClientConfig("kubelet"), "--hostname-override", n.NodeName,
			"--node-ip", n.ip.String(), "--container-runtime-endpoint", "unix://" + p.RuntimeSocket(), "--root-dir", p.Kubelet(),
			"--pod-logs-dir", p.PodLogs(), "--container-logs-dir", p.Logs() + "/containers",
			"--cluster-dns", n.dnsIP().String(), "--cluster-domain", clusterDomain, "--resolv-conf", n.resolvConf(), "--pod-cidr", n.PodCIDR.String(), "--cgroup-root", p.Group, "--port", strconv.Itoa(n.KubeletPort), "--healthz-port", strconv.Itoa(n.HealthPorts[0]),
			"--tls-cert-file", p.Cert("kubelet-serving"), "--tls-private-key-file", p.Key("kubelet-serving"), "--client-ca-file", p.CA(),
			// Whoever has a certificate of this node's own authority is its administrator; there is nobody else to ask.
			"--authorization-mode", "AlwaysAllow", "--authentication-token-webhook=false"}},
	}
}

// resolvConf is the machine's; an isolated node cannot reach those resolvers.
func (n *node) resolvConf() string {
	if n.netns != "" {
		return os.DevNull
	}
	return "/etc/resolv.conf"
}

// openNetwork finds the node's address, in a namespace made for it if the node is isolated.
func (n *node) openNetwork() error {
	if !n.Isolated {
		ip, err := ownAddress()
		n.ip = ip
		return err
	}
	path, err := island.Make(n.place.Netns(), islandAddr, islandGateway, n.ServiceCIDR)
	if err != nil {
		return err
	}
	n.netns, n.ip = path, islandAddr.Addr()
	return nil
}

// inside runs fn in the node's network namespace.
func (n *node) inside(fn func() error) error {
	if n.netns == "" {
		return fn()
	}
	return netns.Do(n.netns, fn)
}

// issueCertificates makes the authority, all certificates and the kubeconfigs.
func (n *node) issueCertificates(now time.Time) error {
	ca, err := openAuthority(n.place.PKI(), now)
	if err != nil {
		return err
	}
	kubernetes := n.ServiceCIDR.Masked().Addr().Next().String()
	for _, w := range []who{
		{file: "api", name: "worknode-api", hosts: []string{"127.0.0.1", "localhost", n.ip.String(), kubernetes, "kubernetes", "kubernetes.default", "kubernetes.default.svc"}},
		{file: "kubelet-serving", name: "system:node:" + n.NodeName, hosts: []string{n.NodeName, n.ip.String(), "127.0.0.1"}},
		{file: "admin", name: "admin", group: "system:masters"},
		{file: "api-to-kubelet", name: "worknode-api", group: "system:masters"},
		{file: "kubelet", name: "system:node:" + n.NodeName, group: "system:nodes"},
		{file: "proxy", name: "system:kube-proxy"},
	} {
		if err := ca.issue(w, now); err != nil {
			return err
		}
	}
	server := "https://127.0.0.1:" + strconv.Itoa(n.APIPort)
	for client, file := range map[string]string{
		"admin": n.place.Kubeconfig(), "kubelet": n.place.ClientConfig("kubelet"), "proxy": n.place.ClientConfig("proxy"),
	} {
		if err := writeKubeconfig(n.place, file, server, client); err != nil {
			return err
		}
	}
	return nil
}

// clean ends the processes and has each remove what it left on the machine: what a room made, only that room knows.
func (n *node) clean() {
	services := n.services()
	for _, name := range []string{"kubelet", "proxy", "runtime"} {
		for _, s := range services {
			if s.name == name {
				n.end(s, 10*time.Second)
				n.sweep(s)
			}
		}
	}
	if n.netns != "" {
		if err := island.Remove(n.place.Netns()); err != nil {
			slog.Error("the node's network namespace stays behind", "err", err)
		}
	}
}

// sweep runs a process's own clean-up.
func (n *node) sweep(s service) {
	s.argv = append(s.argv, "--cleanup")
	_, exit, err := n.start(s)
	if err != nil {
		slog.Error("clean-up does not start", "process", s.name, "err", err)
		return
	}
	select {
	case how := <-exit:
		if how.Status.ExitStatus() != 0 {
			slog.Error("clean-up left something behind", "process", s.name, "how", how.String(), "log", n.logFile(s.name))
		}
	case <-time.After(30 * time.Second):
		slog.Error("clean-up hangs, leaving it", "process", s.name, "log", n.logFile(s.name))
	}
	os.Remove(n.place.Pid(s.name))
}

// lock makes this the only supervisor of its place.
func lock(file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		f.Close()
		return nil, fault.New(fault.Busy, "a supervisor of this node runs already: %s is locked (stop it, or give this node another --root)", file)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	return func() { f.Close() }, nil
}
