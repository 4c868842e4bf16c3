package kubelet

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/kube"
	"worknode/kubelet/event"
	"worknode/kubelet/node"
	"worknode/kubelet/translate"
	"worknode/version"
)

// openNode prepares the node's object and heartbeat.
func openNode(o Options, client *kube.Client, runtime cri.RuntimeServiceClient, images cri.ImageServiceClient, events *event.Recorder, bound net.Addr) *node.Node {
	port := int32(o.Port)
	if tcp, ok := bound.(*net.TCPAddr); ok {
		port = int32(tcp.Port)
	}
	return node.New(node.Config{
		Client: client, Name: o.NodeName, IPs: o.NodeIPs, Labels: o.Labels, MaxPods: o.MaxPods, PodCIDR: o.PodCIDR,
		KubeletPort: port, Version: version.Kubernetes + "-worknode." + version.Build, RootDir: o.RootDir,
		Runtime: node.RuntimeOf(runtime), Images: node.ImagesOf(images),
		Event: func(kind, reason, message string) { events.Event(event.Node(o.NodeName), kind, reason, message) },
	})
}

// hostFacts returns what tells translate about the node. The host's files are read again when they change.
func hostFacts(o Options, self *node.Node, v2 bool) func() translate.Node {
	base := translate.Node{
		Name: o.NodeName, IPs: o.NodeIPs, ClusterDNS: o.ClusterDNS, ClusterDomain: o.ClusterDomain,
		Capacity:    v1.ResourceList{v1.ResourceMemory: *resource.NewQuantity(self.Facts().Memory, resource.BinarySI)},
		Allocatable: self.Allocatable(), CgroupV2: v2, LogRoot: o.LogDir, SeccompRoot: filepath.Join(o.RootDir, "seccomp"),
	}
	resolv, hosts := fileCopy{path: o.ResolvConf}, fileCopy{path: "/etc/hosts"}
	var mu sync.Mutex
	return func() translate.Node {
		mu.Lock()
		defer mu.Unlock()
		n := base
		if text, fresh := resolv.read(); fresh {
			base.HostDNS = translate.ParseResolvConf(text)
			n.HostDNS = base.HostDNS
		}
		n.HostHosts, _ = hosts.read()
		return n
	}
}

// fileCopy is a small file kept in memory while it does not change.
type fileCopy struct {
	path string
	at   time.Time
	text []byte
}

// read returns the content, empty if there is none, and whether it differs from the last read.
func (f *fileCopy) read() (text []byte, fresh bool) {
	st, err := os.Stat(f.path)
	if err != nil || st.ModTime().Equal(f.at) || st.Size() > 10<<20 {
		return f.text, false
	}
	if text, err := os.ReadFile(f.path); err == nil {
		f.text, f.at = text, st.ModTime()
		return text, true
	}
	return f.text, false
}

// addresses finds the machine's own addresses, one per family, IPv4 first; loopback only if there is no other, as on an
// isolated node.
func addresses() ([]string, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("the node's addresses: %w", err)
	}
	var four, six, loop string
	for _, a := range list {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		switch ip := n.IP; {
		case ip.IsLoopback() && ip.To4() != nil:
			loop = ip.String()
		case ip.IsGlobalUnicast() && ip.To4() != nil && four == "":
			four = ip.String()
		case ip.IsGlobalUnicast() && ip.To4() == nil && six == "":
			six = ip.String()
		}
	}
	var out []string
	for _, ip := range []string{four, six} {
		if ip != "" {
			out = append(out, ip)
		}
	}
	if len(out) == 0 && loop != "" {
		out = []string{loop}
	}
	if len(out) == 0 {
		return nil, fault.Hint(fault.New(fault.NotFound, "the node has no network address"), "bring up a network interface, or name the address with --node-ip")
	}
	return out, nil
}
