package proxy

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"worknode/test/bed"
	"worknode/test/harness"
)

// config is what a proxy is configured with.
type config struct {
	name              string
	noDetector        bool // nothing tells pods from others
	masqueradeAll     bool
	nodePortAddresses []string
}

var configs = []config{
	{name: "base"},
	{name: "nodetector", noDetector: true},
	{name: "masqall", masqueradeAll: true},
	{name: "masqall-nodetector", masqueradeAll: true, noDetector: true},
	{name: "localhost", nodePortAddresses: append(both("192.168.0.0/24"), "127.0.0.0/8", "::1/128")},
	{name: "nodeports", nodePortAddresses: both("192.168.0.0/24", "192.168.1.0/24")},
}

func both(prefixes ...string) (out []string) {
	for _, text := range prefixes {
		out = append(out, text, bed.TwinPrefix(netip.MustParsePrefix(text)).String())
	}
	return out
}

func (c config) podCIDRs() string {
	if c.noDetector {
		return ""
	}
	return strings.Join(both(bed.PodCIDR), ",")
}

// contestant is a proxy program.
type contestant struct {
	name string
	// command returns what to execute; kubeconfig and the other files are in dir.
	command func(t testing.TB, dir string, c config) []string
}

var worknode = contestant{"worknode", func(t testing.TB, dir string, c config) []string {
	argv := []string{harness.Binary(t, "worknode"), "proxy", "--kubeconfig", dir + "/kubeconfig", "--hostname-override", bed.NodeName, "--proxy-mode", "nftables"}
	if p := c.podCIDRs(); p != "" {
		argv = append(argv, "--cluster-cidr", p)
	}
	if c.masqueradeAll {
		argv = append(argv, "--masquerade-all")
	}
	if len(c.nodePortAddresses) > 0 {
		argv = append(argv, "--nodeport-addresses", strings.Join(c.nodePortAddresses, ","))
	}
	return argv
}}

// upstream is kube-proxy in nftables mode. Its pauses between two syncs are taken away, as no test is about them, and
// what needs more rights than a network namespace gives.
var upstream = contestant{"kube-proxy", func(t testing.TB, dir string, c config) []string {
	file := filepath.Join(harness.Top(), ".cache/upstream/bin/kube-proxy")
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("%v: scripts/upstream kubeproxy builds it", err)
	}
	text := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: %s
clientConnection: {kubeconfig: %s/kubeconfig}
clusterCIDR: %q
nftables: {minSyncPeriod: 5ms, masqueradeAll: %v}
nodePortAddresses: [%s]
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
oomScoreAdj: 0
featureGates: {KubeProxyNFTablesLocalhostNodePorts: true}
`, bed.NodeName, dir, c.podCIDRs(), c.masqueradeAll, `"`+strings.Join(c.nodePortAddresses, `","`)+`"`)
	text = strings.ReplaceAll(text, `[""]`, "[]")
	if err := os.WriteFile(dir+"/config.yaml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{file, "--config", dir + "/config.yaml"}
}}

// process is a running proxy.
type process struct {
	cmd   *exec.Cmd
	log   *logs
	ended chan struct{}
}

func launch(t testing.TB, b *bed.Bed, argv []string) *process {
	t.Helper()
	p := &process{cmd: b.Command("node", argv...), log: &logs{}, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.Env = append(os.Environ(), "WORKNODE_DEBUG=1")
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	return p
}

// kill ends the proxy as an out-of-memory kill would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// logs collects what a process writes while others read it; of much, the end.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() > 1<<20 {
		l.b.Next(l.b.Len() / 2)
	}
	return l.b.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.b.String()
	if len(text) > 16<<10 {
		text = "…" + text[len(text)-16<<10:]
	}
	return text
}
