package cri

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kernel/netns"
)

// get fetches a page from within a net namespace.
func get(ns, address string) (body string, err error) {
	err = netns.Do(ns, func() error {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second))
		fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
		text, err := io.ReadAll(c)
		_, body, _ = strings.Cut(string(text), "\r\n\r\n")
		return err
	})
	return body, err
}

const page = "hello from the pod\n"

func (n *node) wantPage(address string) {
	n.t.Helper()
	if body, err := get(n.netns(), address); err != nil || body != page {
		n.t.Errorf("http://%s: %q, %v", address, body, err)
	}
}

// webPod runs a web server on port 80 of a pod with a host port.
func (n *node) webPod(hostPort int32) (pod string, box *cri.PodSandboxConfig, container string) {
	n.t.Helper()
	box = n.podConfig()
	box.PortMappings = []*cri.PortMapping{{HostPort: hostPort, ContainerPort: 80}}
	pod = n.runPod(box)
	container = n.run(pod, box, config("web", "exec httpd -f -p 80 -h /www"))
	ip := n.podIPs(pod)[0]
	n.until("the web server", func() bool { _, err := get(n.netns(), net.JoinHostPort(ip, "80")); return err == nil })
	return pod, box, container
}

func (n *node) podIPs(pod string) []string {
	n.t.Helper()
	r, err := n.cri.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil {
		n.t.Fatal(err)
	}
	out := []string{r.Status.Network.Ip}
	for _, ip := range r.Status.Network.AdditionalIps {
		out = append(out, ip.Ip)
	}
	return out
}

func (n *node) stop(pod string) error {
	_, err := n.cri.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: pod})
	return err
}

func (n *node) removePod(pod string) {
	n.t.Helper()
	if _, err := n.cri.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		n.t.Error(err)
	}
}

func TestHostPorts(t *testing.T) {
	n := newNode(t)
	pod, _, web := n.webPod(8080)
	n.wantPage("127.0.0.1:8080")
	n.wantPage("10.88.0.1:8080")
	if got := n.sh(web, "wget -qO- http://10.88.0.1:8080/"); got != page {
		t.Errorf("the pod itself gets %q", got)
	}
	second := n.podConfig()
	second.PortMappings = []*cri.PortMapping{{HostPort: 8080, ContainerPort: 81}}
	_, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: second})
	if status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), pod) {
		t.Errorf("a second pod with the port: %v", err)
	}
	bad := n.podConfig()
	bad.PortMappings = []*cri.PortMapping{{HostPort: 70000, ContainerPort: 81}}
	if _, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: bad}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("host port 70000: %v", err)
	}
	n.killRuntime()
	n.wantPage("127.0.0.1:8080")
	n.start()
	n.wantPage("127.0.0.1:8080")
	if err := n.stop(pod); err != nil {
		t.Fatal(err)
	}
	if body, err := get(n.netns(), "127.0.0.1:8080"); err == nil {
		t.Errorf("the port of a stopped pod answers %q", body)
	}
	n.webPod(8080)
	n.wantPage("127.0.0.1:8080")
}

// fakePlugin keeps one file for each container that has an address, and misbehaves as LAB/mode.COMMAND says.
const fakePlugin = `#!/bin/sh
cat >/dev/null
echo "$CNI_COMMAND $CNI_CONTAINERID" >>LAB/calls
[ "$CNI_COMMAND" = ADD ] && touch LAB/ips/$CNI_CONTAINERID
case "$(cat LAB/mode.$CNI_COMMAND 2>/dev/null)" in
hang) sleep 1000 & echo $! >>LAB/pids; wait ;;
fail) echo '{"code":7,"msg":"the address pool is empty"}'; exit 1 ;;
garbage) echo '<html>'; exit 0 ;;
esac
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.7/24"}]}' ;;
DEL) rm -f LAB/ips/$CNI_CONTAINERID ;;
esac
`

// cniLab is a folder of plugins and configurations for the next newNode.
type cniLab struct {
	t   *testing.T
	dir string
}

func newCNILab(t *testing.T) *cniLab {
	l := &cniLab{t, t.TempDir()}
	for _, d := range []string{"bin", "net.d", "ips"} {
		if err := os.Mkdir(filepath.Join(l.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l.write("bin/fake", strings.ReplaceAll(fakePlugin, "LAB", l.dir))
	if err := os.Chmod(filepath.Join(l.dir, "bin/fake"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WORKNODE_TEST_CNI", l.dir)
	return l
}

func (l *cniLab) write(name, text string) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.dir, name), []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func (l *cniLab) taken() int {
	entries, err := os.ReadDir(filepath.Join(l.dir, "ips"))
	if err != nil {
		l.t.Fatal(err)
	}
	return len(entries)
}

func (n *node) networkReady() (bool, string) {
	n.t.Helper()
	r, err := n.cri.Status(n.ctx(), &cri.StatusRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, c := range r.Status.Conditions {
		if c.Type == cri.NetworkReady {
			return c.Status, c.Message
		}
	}
	return false, "no such condition"
}

const fakeConf = `{"cniVersion":"1.0.0","name":"fakenet","plugins":[{"type":"fake"}]}`

func TestWithoutANetworkOnlyHostNetworkPodsStart(t *testing.T) {
	l := newCNILab(t)
	n := newNode(t)
	if ok, why := n.networkReady(); ok || !strings.Contains(why, filepath.Join(l.dir, "net.d")) {
		t.Errorf("NetworkReady %v: %s", ok, why)
	}
	box := n.podConfig()
	_, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: box})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
	host := n.podConfig()
	host.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	n.runPod(host)
	l.write("net.d/10-fake.conflist", fakeConf)
	n.until("the network", func() bool { ok, _ := n.networkReady(); return ok })
	if ips := n.podIPs(n.runPod(box)); ips[0] != "10.1.0.7" {
		t.Errorf("addresses %v", ips)
	}
}

func TestBadPluginsLeaveNothing(t *testing.T) {
	l := newCNILab(t)
	l.write("net.d/10-fake.conflist", fakeConf)
	n := newNode(t)
	for mode, code := range map[string]codes.Code{"hang": codes.Unavailable, "fail": codes.Unknown, "garbage": codes.Unknown} {
		l.write("mode.ADD", mode)
		box := n.podConfig()
		_, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: box})
		if status.Code(err) != code || !strings.Contains(err.Error(), "fake") {
			t.Errorf("%s in ADD: %v", mode, err)
		}
		if l.taken() != 0 {
			t.Errorf("%s in ADD: %d addresses stay taken", mode, l.taken())
		}
	}
	l.write("mode.ADD", "")
	for _, mode := range []string{"hang", "fail"} {
		pod := n.runPod(n.podConfig())
		l.write("mode.DEL", mode)
		if err := n.stop(pod); err == nil {
			t.Errorf("%s in DEL: the stop succeeded, though the address is still taken", mode)
		}
		n.removePod(pod) // whatever the plugin says
		if l.taken() != 1 {
			t.Fatalf("%s in DEL: %d addresses are taken, so the test shows nothing", mode, l.taken())
		}
		l.write("mode.DEL", "")
		n.until("the address of the removed pod to come back", func() bool { return l.taken() == 0 })
	}
	if list, err := os.ReadDir(filepath.Join(n.dir, "run/live/pods")); err != nil || len(list) != 0 {
		t.Errorf("sandbox folders are left: %v %v", list, err)
	}
}

func TestAddressesComeBackAfterAKillAndAReboot(t *testing.T) {
	l := newCNILab(t)
	l.write("net.d/10-fake.conflist", fakeConf)
	n := newNode(t)
	kept := n.runPod(n.podConfig())
	l.write("mode.ADD", "hang")
	go n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.podConfig()})
	var child string
	n.until("an ADD under way, in a plugin's child", func() bool {
		text, _ := os.ReadFile(filepath.Join(l.dir, "pids"))
		child = strings.TrimSpace(string(text))
		return child != ""
	})
	n.killRuntime()
	l.write("mode.ADD", "")
	n.start()
	n.until("the address of the half-made pod to come back", func() bool { return l.taken() == 1 })
	n.until("the plugin's child to be killed", func() bool {
		line, err := os.ReadFile("/proc/" + child + "/cmdline")
		return err != nil || len(line) == 0
	})
	if ips := n.podIPs(kept); ips[0] != "10.1.0.7" {
		t.Errorf("the other pod has %v", ips)
	}

	n.killRuntime()
	pid := n.monitorPid()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, "run/live/state/boot"), []byte("an earlier boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.until("the address of before the reboot to come back", func() bool { return l.taken() == 0 })
	if list, err := n.cri.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{}); err != nil || len(list.Items) != 0 {
		t.Errorf("pods after a reboot: %v %v", list, err)
	}
}

// referencePlugins builds the plugins of the CNI project; a machine without a Go compiler brings them along.
func referencePlugins(t *testing.T, l *cniLab) {
	t.Helper()
	bin := filepath.Join(l.dir, "bin")
	if dir := os.Getenv("WORKNODE_CNI_PLUGINS"); dir != "" {
		if out, err := exec.Command("cp", "-a", dir+"/.", bin).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	const at = "github.com/containernetworking/plugins/plugins/"
	cmd := exec.Command("go", "build", "-o", bin+"/", at+"main/bridge", at+"main/ptp", at+"ipam/host-local", at+"meta/portmap")
	cmd.Dir = "../cni"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the reference plugins: %v\n%s", err, out)
	}
}

// TestReferencePlugins: the bridge everybody has, dual stack, with host ports by us and by its portmap plugin.
// Without hairpinMode a pod would not reach itself by a host port where br_netfilter is on, with either of them.
func TestReferencePlugins(t *testing.T) {
	for _, kind := range []string{"bridge", "ptp", "portmap"} {
		t.Run(kind, func(t *testing.T) {
			l := newCNILab(t)
			referencePlugins(t, l)
			main, more := kind, ""
			if kind == "portmap" {
				main, more = "bridge", `,{"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}}`
			}
			l.write("net.d/10-ref.conflist", fmt.Sprintf(`{"cniVersion":"1.1.0","name":"ref","plugins":[{"type":%q,"bridge":"cni9","isGateway":true,"hairpinMode":true,
				"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd00:77::/64"}]],
				"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}%s]}`, main, filepath.Join(l.dir, "ipam"), more))
			n := newNode(t)
			n.until("the network", func() bool { ok, _ := n.networkReady(); return ok })
			pod, _, web := n.webPod(8080)
			ips := n.podIPs(pod)
			if len(ips) != 2 || !strings.HasPrefix(ips[0], "10.77.0.") || !strings.HasPrefix(ips[1], "fd00:77::") {
				t.Errorf("addresses %v", ips)
			}
			other := n.runPod(n.podConfig())
			n.wantPage("127.0.0.1:8080")
			gateway := strings.Fields(n.sh(web, "ip route | grep default"))[2]
			n.wantPage(gateway + ":8080")
			filters := []string{"1", "0"} // whether what stays on the bridge passes the node's rules
			if kind == "portmap" {
				filters = filters[:1] // its nftables backend needs that for neighbours
			}
			for _, filter := range filters {
				if err := netns.Do(n.netns(), func() error {
					return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(filter), 0o644)
				}); err != nil {
					t.Fatal(err)
				}
				for who, id := range map[string]string{"neighbour": other, "the pod itself": pod} {
					if body, err := get(filepath.Join(n.dir, "run/live/pods", id, "ns/net"), gateway+":8080"); body != page {
						t.Errorf("bridge-nf-call-iptables=%s: %s gets %q, %v", filter, who, body, err)
					}
				}
			}
			n.killRuntime()
			n.start()
			n.wantPage("127.0.0.1:8080")
			n.removePod(pod)
			n.removePod(other)
			left, err := filepath.Glob(filepath.Join(l.dir, "ipam/ref/[0-9f]*"))
			if err != nil || len(left) != 0 {
				t.Errorf("addresses stay taken: %v %v", left, err)
			}
			if body, err := get(n.netns(), "127.0.0.1:8080"); err == nil {
				t.Errorf("the port of a removed pod answers %q", body)
			}
		})
	}
}
