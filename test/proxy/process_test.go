package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"worknode/test/bed"
	"worknode/test/harness"
)

func TestServers(t *testing.T) { behaveAll(t, worknode, served) }

// byFile is worknode with a configuration file, called by the name kube-proxy: as a cluster that had that would start it.
func byFile(file *string, text string) contestant {
	return contestant{"worknode", func(t testing.TB, dir string, _ config) []string {
		*file = filepath.Join(dir, "config.yaml")
		writeConfig(t, *file, dir, text)
		name := filepath.Join(dir, "kube-proxy")
		if err := os.Symlink(harness.Binary(t, "worknode"), name); err != nil {
			t.Fatal(err)
		}
		return []string{name, "--config", *file}
	}}
}

// writeConfig replaces the file as the kubelet does with a ConfigMap's: by renaming.
func writeConfig(t testing.TB, file, dir, text string) {
	t.Helper()
	text = fmt.Sprintf("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nhostnameOverride: %s\nclientConnection: {kubeconfig: %s/kubeconfig}\nclusterCIDR: %q\n%s\n",
		bed.NodeName, dir, config{}.podCIDRs(), text)
	if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// page asks a server of the node under test.
func (s *stage) page(url string) (code int, body string, err error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, Dial: func(_, addr string) (c net.Conn, err error) {
		inside := s.bed.In("node", func() { c, err = net.DialTimeout("tcp", addr, 5*time.Second) })
		return c, errors.Join(err, inside)
	}}}
	r, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return r.StatusCode, string(b), err
}

// says waits until a page answers with code and text.
func (s *stage) says(url string, code int, text string) {
	s.t.Helper()
	s.eventually(10*time.Second, url+" says "+text, func() error {
		got, body, err := s.page(url)
		if err != nil || got != code || !strings.Contains(body, text) {
			return fmt.Errorf("%d %.300s %w", got, body, errors.Join(err, errors.New("not yet")))
		}
		return nil
	})
}

// tool runs `worknode proxy ...` beside the proxy.
func (s *stage) tool(args ...string) (string, error) {
	out, err := s.bed.Command("node", append([]string{harness.Binary(s.t, "worknode"), "proxy"}, args...)...).CombinedOutput()
	return string(out), err
}

const twoEndpoints = `
service ns1/svc1 NodePort ip 172.30.0.41 port p80 80/tcp node 3005
slice ns1/svc1 port p80 80/tcp at 10.180.0.1 here at 10.180.1.1`

// A changed file comes into force without a restart and without a lost connection; a bad one changes nothing and says why.
func TestConfigurationIsReloaded(t *testing.T) {
	var file string
	s := newStage(t, byFile(&file, "mode: nftables\nsomeFieldOfALaterRelease: 1"), config{name: "base"})
	dir := filepath.Dir(file)
	s.apply(twoEndpoints)
	if !strings.Contains(s.log.String(), "config.yaml:7: unknown field") {
		t.Errorf("the unknown field is not named:\n%s", s.log)
	}
	s.says("http://127.0.0.1:10256/healthz", 200, `"nodeEligible":true,"healthy":true,"status":{"IPv4"`)
	s.says("http://127.0.0.1:10256/livez", 200, `"healthy":true`)
	s.says("http://127.0.0.1:10249/proxyMode", 200, "nftables")
	s.says("http://127.0.0.1:10249/configz", 200, `{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration","apiVersion":"kubeproxy.config.k8s.io/v1alpha1"`)
	s.says("http://127.0.0.1:10249/metrics", 200, `kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"}`)
	s.says("http://127.0.0.1:10249/flagz", 200, "config")
	s.says("http://127.0.0.1:10249/statusz", 200, "Binary version: 1.37")

	vip := packet(bed.PodIP, "172.30.0.41:80", "tcp")
	alt := packet(bed.Outside, bed.NodeAlt+":3005", "tcp") // an address that is not the Node's
	twice(alt, func(p bed.Packet) { s.expect(p, "refused") })
	pid := s.cmd.Process.Pid
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				failed <- nil
				return
			default:
			}
			if _, err := s.bed.Ask(vip, 5*time.Second); err != nil {
				failed <- fmt.Errorf("while the configuration changed: %w", err)
				return
			}
		}
	}()
	writeConfig(t, file, dir, "mode: nftables\nnodePortAddresses: [all]\nnftables: {masqueradeAll: true}\nhealthzBindAddress: 127.0.0.1:11256")
	s.says("http://127.0.0.1:11256/healthz", 200, `"healthy":true`)
	twice(alt, func(p bed.Packet) {
		s.eventually(5*time.Second, "the node port answers on every address", func() error { _, err := s.bed.Ask(p, time.Second); return err })
	})
	s.expect(vip, "10.180.0.1:80 10.180.1.1:80 masq")
	if _, _, err := s.page("http://127.0.0.1:10256/healthz"); err == nil {
		t.Error("the old address is still served")
	}
	// Bad ones: what is in force stays.
	for text, want := range map[string]string{
		"mode: nftables\nconntrack: {min: -1}":    "config.yaml:7: conntrack.min: -1: must be zero or more",
		"mode: [nftables":                         "configuration not taken, the one before stays in force",
		"mode: nftables\nhealthzBindAddress: :0x": "healthzBindAddress",
	} {
		writeConfig(t, file, dir, text)
		s.eventually(5*time.Second, "the log names what is wrong: "+want, func() error {
			if !strings.Contains(s.log.String(), want) {
				return errors.New("not yet")
			}
			return nil
		})
	}
	s.says("http://127.0.0.1:11256/healthz", 200, `"healthy":true`)
	// And another mode, with other defaults.
	writeConfig(t, file, dir, "mode: ''")
	s.says("http://127.0.0.1:10249/proxyMode", 200, "iptables")
	local := packet("127.0.0.1", "127.0.0.1:3005", "tcp")
	s.eventually(5*time.Second, "in the mode iptables node ports answer on loopback", func() error { _, err := s.bed.Ask(local, time.Second); return err })
	close(stop)
	if err := <-failed; err != nil {
		t.Error(err)
	}
	if !s.alive() || s.cmd.Process.Pid != pid {
		t.Error("the process is another one")
	}
}

// What people are shown is what the kernel does.
func TestToolsOfPeople(t *testing.T) {
	s := newStage(t, worknode, config{name: "base"})
	s.apply(twoEndpoints + `
service ns1/none ip 172.30.0.42 port - 80/tcp
service ns1/inside iTP Local ip 172.30.0.43 port - 80/tcp
slice ns1/inside port - 80/tcp at 10.180.1.1`)
	out, err := s.tool("dump", "-o", "json")
	var d struct {
		Node     string
		Complete bool
		Services []struct {
			Namespace, Name string
			Ports           []struct {
				Family, ClusterIP string
				NodePort          int
				Endpoints         []string
			}
		}
	}
	if err != nil || json.Unmarshal([]byte(out), &d) != nil || d.Node != bed.NodeName || !d.Complete {
		t.Fatalf("dump: %v\n%s", err, out)
	}
	found := false
	for _, one := range d.Services {
		if one.Namespace == "ns1" && one.Name == "svc1" {
			p := one.Ports[0]
			found = p.Family == "IPv4" && p.ClusterIP == "172.30.0.41" && p.NodePort == 3005 && strings.Join(p.Endpoints, " ") == "10.180.0.1:80 10.180.1.1:80" && len(one.Ports) == 2
		}
	}
	if !found {
		t.Errorf("dump does not show ns1/svc1 as it is:\n%s", out)
	}
	if out, err := s.tool("dump"); err != nil || !strings.Contains(out, "ns1/svc1:p80") || !strings.Contains(out, "nodes:3005") {
		t.Errorf("dump: %v\n%s", err, out)
	}
	for _, c := range []struct{ from, to, fate string }{
		{bed.PodIP, "172.30.0.41:80", "sent"},
		{bed.Outside, bed.NodeIP + ":3005", "sent"},
		{bed.NodeIP, "172.30.0.41:80", "sent"},
		{bed.PodIP, "172.30.0.42:80", "refused"},
		{bed.PodIP, "172.30.0.41:81", "refused"},
		{bed.PodIP, "172.30.0.43:80", "dropped"},
		{bed.PodIP, "172.30.0.99:80", "dropped"},
		{bed.PodIP, "10.180.0.1:80", "passed"},
	} {
		twice(packet(c.from, c.to, "tcp"), func(p bed.Packet) {
			out, err := s.tool("trace", p.From.String(), p.To.String(), "-o", "json")
			var got struct {
				Fate, Why string
				Targets   []struct{ Endpoint netip.AddrPort }
				Steps     []string
			}
			if err != nil || json.Unmarshal([]byte(out), &got) != nil || got.Fate != c.fate || (len(got.Steps) == 0) != (c.fate == "passed") {
				t.Errorf("trace %s: %v\n%s", p, err, out)
				return
			}
			// The kernel is asked the same.
			a, err := s.bed.Ask(p, time.Second)
			switch c.fate {
			case "sent":
				ok := false
				for _, target := range got.Targets {
					ok = ok || target.Endpoint == a.At
				}
				if err != nil || !ok {
					t.Errorf("%s: the kernel sends to %s (%v), trace says %v", p, a.At, err, got.Targets)
				}
			case "refused":
				if !errors.Is(err, bed.ErrRefused) {
					t.Errorf("%s: the kernel does not refuse: %v", p, err)
				}
			case "dropped":
				if err == nil || errors.Is(err, bed.ErrRefused) {
					t.Errorf("%s: the kernel does not drop: %v", p, err)
				}
			case "passed":
				if err != nil {
					t.Errorf("%s: the kernel does not let it pass: %v", p, err)
				}
			}
		})
	}
	for want, args := range map[string][]string{
		`client "pod": want an IP address`:         {"trace", "pod", "172.30.0.41:80"},
		`destination "172.30.0.41": want ADDRESS:`: {"trace", bed.PodIP, "172.30.0.41"},
		"trace wants a client and a destination":   {"trace", bed.PodIP},
		"-o yaml: want json or text":               {"dump", "-o", "yaml"},
		"different families":                       {"trace", bed.PodIP, "[fd00::1]:80"},
	} {
		if out, err := s.tool(args...); err == nil || !strings.Contains(out, want) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	if out, err := s.tool("doctor"); err != nil || !strings.Contains(out, fmt.Sprintf("runs as process %d and serves Services", s.cmd.Process.Pid)) {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	s.must(s.bed.Command("node", "nft", "add", "table", "ip", "kube-proxy").Run())
	if out, err := s.tool("doctor"); err == nil || !strings.Contains(out, "the table kube-proxy is there beside ours") {
		t.Errorf("doctor does not see kube-proxy's table: %v\n%s", err, out)
	}
	// Only root is answered.
	nobody := append([]string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"}, anybodysBinary(t), "proxy", "dump")
	if out, err := s.bed.Command("node", nobody...).CombinedOutput(); err == nil || !strings.Contains(string(out), "only root is answered") {
		t.Errorf("anybody may ask: %v\n%s", err, out)
	}
}

// anybodysBinary is worknode where every user may execute it.
func anybodysBinary(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "wn-anybody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	data, err := os.ReadFile(harness.Binary(t, "worknode"))
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(dir+"/worknode", data, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir + "/worknode"
}

// A second proxy names the first, and one that finds an address taken tries on or ends, as it was told.
func TestStartsThatCannotSucceed(t *testing.T) {
	s := newStage(t, worknode, config{name: "base"})
	second, err := s.bed.Command("node", s.argv...).CombinedOutput()
	if err == nil || !strings.Contains(string(second), fmt.Sprintf("another worknode proxy runs in this network namespace: process %d of user 0 has its lock", s.cmd.Process.Pid)) {
		t.Errorf("a second proxy: %v\n%s", err, second)
	}
	if out, err := s.tool("--cleanup"); err == nil || !strings.Contains(out, "another worknode proxy runs") {
		t.Errorf("clean-up beside a proxy: %v\n%s", err, out)
	}
	s.kill()
	holder, err := s.bed.Listen("node", "127.0.0.1:10249")
	s.must(err)
	hard := s.bed.Command("node", append(s.argv, "--bind-address-hard-fail")...)
	out, err := hard.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).ExitStatus() == 0 || !strings.Contains(string(out), "metrics on 127.0.0.1:10249") {
		t.Errorf("hard fail: %v\n%s", err, out)
	}
	s.start()
	s.sync() // Services work without the metrics
	if !strings.Contains(s.log.String(), "server not up, trying on") {
		t.Errorf("nobody says that the address is taken:\n%s", s.log)
	}
	holder.Close()
	s.says("http://127.0.0.1:10249/healthz", 200, "ok")
	// The end: nothing stays.
	s.kill()
	if out, err := s.tool("--cleanup"); err != nil {
		t.Errorf("clean-up: %v\n%s", err, out)
	}
	if out, err := s.bed.Command("node", "nft", "list", "tables").Output(); err != nil || strings.Contains(string(out), "worknode") {
		t.Errorf("left behind: %v\n%s", err, out)
	}
	s.start()
	s.sync()
}

// While the API is away Services work on, and the proxy is healthy: nothing waits that it knows of.
func TestAPIIsAway(t *testing.T) {
	s := newStage(t, worknode, config{name: "base"})
	s.apply(twoEndpoints)
	s.api.Break()
	s.expect(packet(bed.PodIP, "172.30.0.41:80", "tcp"), "10.180.0.1:80 10.180.1.1:80")
	s.says("http://127.0.0.1:10256/healthz", 200, `"healthy":true`)
	s.api.Mend()
	s.sync()
	// The Node goes: load balancers are told, probes are not.
	s.api.Delete(&corev1.Node{ObjectMeta: node().ObjectMeta})
	s.says("http://127.0.0.1:10256/healthz", 503, `"nodeEligible":false,"healthy":true`)
	s.says("http://127.0.0.1:10256/livez", 200, `"healthy":true`)
	s.api.Put(node())
	s.says("http://127.0.0.1:10256/healthz", 200, `"nodeEligible":true`)
}
