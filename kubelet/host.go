package kubelet

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/kernel/cpulist"
	"worknode/kube"
	"worknode/kubelet/api/access"
	"worknode/kubelet/certificate"
	"worknode/kubelet/cgroups"
	"worknode/kubelet/config"
	"worknode/kubelet/event"
	"worknode/kubelet/logs"
	"worknode/kubelet/node"
	"worknode/kubelet/translate"
	"worknode/task"
	"worknode/version"
)

// openNode prepares the node's object and heartbeat.
func openNode(o Options, client *kube.Client, engine cri.RuntimeServiceClient, images cri.ImageServiceClient, events *event.Recorder, bound net.Addr, registered func(types.UID)) *node.Node {
	port := o.Config.Port
	if tcp, ok := bound.(*net.TCPAddr); ok {
		port = int32(tcp.Port)
	}
	c := o.Config
	return node.New(node.Config{
		MaxPods: maxPods(c), Reserved: reserved(c), Kept: kept(c), Taints: c.RegisterWithTaints, ProviderID: c.ProviderID, Unlisted: !*c.RegisterNode,
		MaxImages: maxImages(c), LookEvery: c.NodeStatusUpdateFrequency.Duration, ReportEvery: c.NodeStatusReportFrequency.Duration,
		LeaseSeconds: c.NodeLeaseDurationSeconds,
		Client:       client, Name: o.NodeName, IPs: o.NodeIPs, Labels: o.Labels, PodCIDR: o.Config.PodCIDR,
		KubeletPort: port, Version: version.Kubernetes + "-worknode." + version.Build, RootDir: o.RootDir,
		Runtime: node.RuntimeOf(engine), Images: node.ImagesOf(images),
		Registered: registered,
		Event:      func(kind, reason, message string) { events.Event(event.Node(o.NodeName), kind, reason, message) },
	})
}

// hostFacts returns what tells translate about the node. The host's files are read again when they change.
func hostFacts(o Options, self *node.Node, v2 bool) func() translate.Node {
	base := translate.Node{
		Name: o.NodeName, IPs: o.NodeIPs, ClusterDNS: o.Config.ClusterDNS, ClusterDomain: o.Config.ClusterDomain,
		Capacity:    v1.ResourceList{v1.ResourceMemory: *resource.NewQuantity(self.Facts().Memory, resource.BinarySI)},
		Allocatable: self.Allocatable(), CgroupV2: v2, LogRoot: o.Config.PodLogsDir, SeccompRoot: filepath.Join(o.RootDir, "seccomp"),
		SeccompDefault: *o.Config.SeccompDefault, CPUQuotaPeriodUs: o.Config.CPUCFSQuotaPeriod.Microseconds(), NoCPUQuota: !*o.Config.CPUCFSQuota,
	}
	resolv, hosts := fileCopy{path: *o.Config.ResolverConfig}, fileCopy{path: "/etc/hosts"}
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

// healthz is where the plain health check answers, empty for nowhere.
func healthz(c *config.Configuration) string {
	if *c.HealthzPort == 0 {
		return ""
	}
	return net.JoinHostPort(c.HealthzBindAddress, strconv.Itoa(int(*c.HealthzPort)))
}

// groupFacts are the bounds of the pods' cgroups. What is enforced is more than what may be planned with: eviction needs
// room to act in. Source: Kubernetes docs, reserve compute resources for system daemons.
func groupFacts(c *config.Configuration, enforced v1.ResourceList) cgroups.Facts {
	f := cgroups.Facts{PodPidsLimit: *c.PodPidsLimit, CPUQuotaPeriodUs: c.CPUCFSQuotaPeriod.Microseconds(), NoCPUQuota: !*c.CPUCFSQuota}
	if slices.Contains(c.EnforceNodeAllocatable, "pods") {
		f.Allocatable = enforced
	}
	return f
}

// logConfig is how the logs of containers are kept.
func logConfig(c *config.Configuration, r *room) logs.Config {
	size := resource.MustParse(c.ContainerLogMaxSize) // validated when it was read
	return logs.Config{MaxSize: size.Value(), MaxFiles: int(*c.ContainerLogMaxFiles), Every: c.ContainerLogMonitorInterval.Duration,
		Running: r.runningLogs, Reopen: r.act.Reopen}
}

func maxImages(c *config.Configuration) int { return cmp.Or(int(*c.NodeStatusMaxImages), -1) }

// maxPods is the number of pods that the node takes. Source: KubeletConfiguration, maxPods and podsPerCore.
func maxPods(c *config.Configuration) int {
	if perCore := int(c.PodsPerCore) * runtime.NumCPU(); perCore > 0 {
		return min(int(c.MaxPods), perCore)
	}
	return int(c.MaxPods)
}

// reserved is what the system and the node's own processes have for themselves. The texts were validated when read.
func reserved(c *config.Configuration) v1.ResourceList {
	out := v1.ResourceList{}
	for _, list := range []map[string]string{c.SystemReserved, c.KubeReserved} {
		for name, text := range list {
			sum := out[v1.ResourceName(name)]
			sum.Add(resource.MustParse(text))
			out[v1.ResourceName(name)] = sum
		}
	}
	if c.ReservedSystemCPUs != "" { // it takes the place of all reserved CPU time
		out[v1.ResourceCPU] = *resource.NewQuantity(int64(cpulist.Count(c.ReservedSystemCPUs)), resource.DecimalSI)
	}
	return out
}

// kept is what hard eviction keeps free of what pods may ask for.
func kept(c *config.Configuration) map[v1.ResourceName]node.Threshold {
	out := map[v1.ResourceName]node.Threshold{}
	for signal, name := range map[string]v1.ResourceName{"memory.available": v1.ResourceMemory, "nodefs.available": v1.ResourceEphemeralStorage} {
		text, ok := c.EvictionHard[signal]
		if !ok {
			continue
		}
		if share, ok := strings.CutSuffix(text, "%"); ok {
			percent, err := strconv.ParseFloat(share, 64)
			if err == nil { // validated when read
				out[name] = node.Threshold{Percent: percent}
			}
			continue
		}
		q := resource.MustParse(text)
		out[name] = node.Threshold{Amount: &q}
	}
	return out
}

// accessConfig is who may use the server.
func accessConfig(o Options, client *kube.Client) access.Config {
	who, may := o.Config.Authentication, o.Config.Authorization
	return access.Config{
		Client: client, Node: o.NodeName, Anonymous: *who.Anonymous.Enabled, Tokens: *who.Webhook.Enabled, AlwaysAllow: may.Mode == "AlwaysAllow",
		TokenTTL: who.Webhook.CacheTTL.Duration, AllowTTL: may.Webhook.CacheAuthorizedTTL.Duration, DenyTTL: may.Webhook.CacheUnauthorizedTTL.Duration,
	}
}

// servingCertificate is what the server shows when no file is named: signed by the cluster if so configured, and until then,
// or else, by nobody. nil: the files of the configuration.
func servingCertificate(tasks *task.Group, o Options, client *kube.Client) (func() *tls.Certificate, error) {
	if o.Config.TLSCertFile != "" {
		return nil, nil
	}
	stand, err := certificate.SelfSigned(o.CertDir, o.NodeName, o.NodeIPs)
	if err != nil {
		return nil, err
	}
	if !o.Config.ServerTLSBootstrap {
		slog.Warn("the kubelet's server shows a self-signed certificate", "remedy", "set serverTLSBootstrap, or tlsCertFile and tlsPrivateKeyFile")
		return func() *tls.Certificate { return stand }, nil
	}
	keeper := certificate.Serving(o.CertDir, o.NodeName, client, func() []v1.NodeAddress { return node.Addresses(o.NodeName, o.NodeIPs) })
	if keeper.Current() == nil {
		slog.Info("the kubelet's server shows a self-signed certificate until the cluster has signed one", "approve with", "kubectl certificate approve")
	}
	tasks.Go("serving certificate", keeper.Run)
	return func() *tls.Certificate {
		if have := keeper.Current(); have != nil && have.Leaf != nil && time.Now().Before(have.Leaf.NotAfter) {
			return have
		}
		return stand
	}, nil
}
