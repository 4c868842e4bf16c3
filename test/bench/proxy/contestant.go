package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"worknode/test/bed"
)

// contestant is a proxy program with the configuration that its users get by default.
type contestant struct {
	name    string
	command func(dir string) ([]string, error)
	metrics string // URL in the node's namespace
}

func contestants(top string) []contestant {
	return []contestant{
		{name: "worknode", metrics: "127.0.0.1:10249", command: func(dir string) ([]string, error) {
			return []string{top + "/bin/worknode", "proxy", "--kubeconfig", dir + "/kubeconfig", "--hostname-override", bed.NodeName,
				"--proxy-mode", "nftables", "--cluster-cidr", bed.PodCIDR}, nil
		}},
		{name: "kube-proxy", command: func(dir string) ([]string, error) {
			// The defaults, but for what a machine without all rights refuses. The client's limits are lifted: they would
			// be about the API, not about the proxy.
			text := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: %s
clientConnection: {kubeconfig: %s/kubeconfig}
clusterCIDR: %q
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
oomScoreAdj: 0
`, bed.NodeName, dir, bed.PodCIDR)
			return []string{top + "/.cache/upstream/bin/kube-proxy", "--config", dir + "/config.yaml"}, os.WriteFile(dir+"/config.yaml", []byte(text), 0o644)
		}},
	}
}

// process is a running contestant.
type process struct {
	cmd   *exec.Cmd
	log   bytes.Buffer
	ended chan struct{}
}

func start(b *bed.Bed, argv []string) (*process, error) {
	p := &process{cmd: b.Command("node", argv...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	return p, nil
}

func (p *process) end() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// dead tells why the process is no more, if so.
func (p *process) dead() error {
	select {
	case <-p.ended:
		text := p.log.String()
		return fmt.Errorf("it ended: %v; it said:\n%s", p.cmd.ProcessState, text[max(0, len(text)-4000):])
	default:
		return nil
	}
}

// cpu is what the process has used, and its ended children: kube-proxy has nft do the work. The process is read from its
// CPU clock, in nanoseconds, the children from /proc, in hundredths of a second. Source: clock_getcpuclockid(3).
func (p *process) cpu() (time.Duration, error) {
	pid := p.cmd.Process.Pid
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+2:]))
	var ticks int64
	for _, f := range fields[13:15] { // cutime, cstime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ts.Nano()) + time.Duration(ticks)*10*time.Millisecond, nil
}

// pss is the memory of the process, its share of what it shares with others included, in bytes.
func (p *process) pss() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no Pss in smaps_rollup")
}
