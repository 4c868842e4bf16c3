package bed

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"worknode/test/harness"
)

// Maker is whose program does a part of a node's job.
type Maker int

const (
	Ours Maker = iota
	Upstream
)

func (m Maker) String() string {
	if m == Upstream {
		return "upstream"
	}
	return "worknode"
}

// etcdCommand does not wait for disks: how fast they sync is not what is tested.
func etcdCommand(data string) []string {
	return []string{Program("etcd"), "--name=bed", "--data-dir=" + data, "--unsafe-no-fsync", "--listen-metrics-urls=http://127.0.0.1:2381",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=bed=http://127.0.0.1:2380", "--log-level=warn"}
}

func apiserverCommand(c *Cluster, pki *Authority) []string {
	return []string{Program("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address=" + CoreIP, "--bind-address=0.0.0.0", "--secure-port=6443",
		"--service-cluster-ip-range=" + ServiceCIDR, "--allow-privileged=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--enable-bootstrap-token-auth=true",
		"--client-ca-file=" + pki.Cert("ca"), "--tls-cert-file=" + pki.Cert("apiserver"), "--tls-private-key-file=" + pki.Key("apiserver"),
		"--kubelet-client-certificate=" + pki.Cert("apiserver-kubelet"), "--kubelet-client-key=" + pki.Key("apiserver-kubelet"),
		"--kubelet-preferred-address-types=InternalIP,Hostname",
		"--requestheader-client-ca-file=" + pki.Cert("front-proxy-ca"), "--requestheader-allowed-names=front-proxy",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + pki.Cert("front-proxy"), "--proxy-client-key-file=" + pki.Key("front-proxy"),
		"--service-account-issuer=https://kubernetes.default.svc." + Domain,
		"--service-account-key-file=" + pki.Dir + "/sa.pub", "--service-account-signing-key-file=" + pki.Key("sa"),
		"--audit-policy-file=" + c.Dir + "/audit.yaml", "--audit-log-path=" + c.Dir + "/audit.log", "--audit-log-mode=blocking",
		"--enable-aggregator-routing=true", "--v=1",
	}
}

func managerCommand(c *Cluster, pki *Authority) []string {
	kubeconfig := c.Kubeconfig("manager")
	return []string{Program("kube-controller-manager"), "--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials=true",
		"--controllers=*,bootstrapsigner,tokencleaner", "--allocate-node-cidrs=false",
		"--service-cluster-ip-range=" + ServiceCIDR,
		"--root-ca-file=" + pki.Cert("ca"), "--service-account-private-key-file=" + pki.Key("sa"),
		"--cluster-signing-cert-file=" + pki.Cert("ca"), "--cluster-signing-key-file=" + pki.Key("ca"),
		"--requestheader-client-ca-file=" + pki.Cert("front-proxy-ca"),
		"--kube-api-qps=400", "--kube-api-burst=800", "--v=1",
	}
}

func schedulerCommand(c *Cluster) []string {
	kubeconfig := c.Kubeconfig("scheduler")
	return []string{Program("kube-scheduler"), "--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", "--leader-elect=false", "--kube-api-qps=400", "--kube-api-burst=800", "--v=1"}
}

// SandboxImage is what containerd keeps a sandbox with.
const SandboxImage = "worknode.test/app:1"

func upstreamBin(name string) string {
	return filepath.Join(harness.Top(), ".cache/upstream/bin", name)
}

// socket is the CRI socket inside the node, each runtime's default.
func (n *Node) socket() string {
	if n.Config.Runtime == Upstream {
		return "/run/containerd/containerd.sock"
	}
	return "/run/worknode/runtime.sock"
}

func (n *Node) podRoot() string { return string(n.group) + "/pods" }

func (n *Node) runtimeCommand() ([]string, error) {
	if n.Config.Runtime == Ours {
		return append([]string{filepath.Join(harness.Top(), "bin/worknode"), "runtime", "--images", n.dir + "/images",
			"--bridge", "worknode0", "--pod-cidr", n.PodCIDR, "--cgroup", n.podRoot() + "/other"}, n.Config.RuntimeArgs...), nil
	}
	config := n.dir + "/containerd.toml"
	text := fmt.Sprintf(containerdConfig, SandboxImage, filepath.Join(harness.Top(), ".cache/upstream/bin/cni"), n.dir+"/net.d", upstreamBin("runc"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(n.dir+"/net.d", 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(n.dir+"/net.d/10-bed.conflist", fmt.Appendf(nil, cniConfig, n.PodCIDR), 0o644); err != nil {
		return nil, err
	}
	return append([]string{upstreamBin("containerd"), "-c", config, "-l", "warn"}, n.Config.RuntimeArgs...), nil
}

// containerdConfig is the defaults, but for what a machine without CAP_SYS_RESOURCE forces.
const containerdConfig = `version = 3
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "%[1]s"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["%[2]s", "/opt/cni/bin"]
    conf_dir = "%[3]s"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "%[4]s"
        SystemdCgroup = false
`

const cniConfig = `{"cniVersion": "1.0.0", "name": "bed", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
`

func (n *Node) kubeletCommand() ([]string, error) {
	pki := n.cluster.CA
	if n.Config.Kubelet == Ours {
		return append([]string{filepath.Join(harness.Top(), "bin/worknode"), "kubelet",
			"--kubeconfig", n.Kubeconfig(), "--hostname-override", n.Name, "--node-ip", n.IP,
			"--container-runtime-endpoint", "unix://" + n.socket(), "--cgroup-root", n.podRoot(),
			"--tls-cert-file", pki.Cert(n.Name + "-serving"), "--tls-private-key-file", pki.Key(n.Name + "-serving"),
			"--client-ca-file", pki.Cert("ca"), "--cluster-dns", DNSService, "--cluster-domain", Domain}, n.Config.KubeletArgs...), nil
	}
	config := n.dir + "/kubelet.yaml"
	text := fmt.Sprintf(kubeletConfig, pki.Cert("ca"), pki.Cert(n.Name+"-serving"), pki.Key(n.Name+"-serving"), Domain, DNSService, n.socket(), n.podRoot()) + n.Config.KubeletYAML
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	return append([]string{Program("kubelet"), "--config=" + config, "--kubeconfig=" + n.Kubeconfig(),
		"--hostname-override=" + n.Name, "--node-ip=" + n.IP, "--v=1"}, n.Config.KubeletArgs...), nil
}

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: "%s"}
authorization: {mode: Webhook}
tlsCertFile: "%s"
tlsPrivateKeyFile: "%s"
clusterDomain: "%s"
clusterDNS: ["%s"]
containerRuntimeEndpoint: "unix://%s"
cgroupRoot: "%s"
cgroupDriver: cgroupfs
failCgroupV1: false
enforceNodeAllocatable: []
failSwapOn: false
oomScoreAdj: 0
evictionHard: {memory.available: "100Mi", nodefs.available: "1%%", imagefs.available: "1%%", nodefs.inodesFree: "1%%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
serializeImagePulls: false
`

func (n *Node) proxyCommand() ([]string, error) {
	kubeconfig := n.cluster.Kubeconfig("kube-proxy")
	if n.Config.Proxy == Ours {
		return append([]string{filepath.Join(harness.Top(), "bin/worknode"), "proxy", "--kubeconfig", kubeconfig,
			"--hostname-override", n.Name, "--cluster-cidr", PodCIDR}, n.Config.ProxyArgs...), nil
	}
	config := n.dir + "/proxy.yaml"
	if err := os.WriteFile(config, fmt.Appendf(nil, proxyConfig, kubeconfig, PodCIDR, n.IP), 0o644); err != nil {
		return nil, err
	}
	return append([]string{Program("kube-proxy"), "--config=" + config, "--hostname-override=" + n.Name, "--v=1"}, n.Config.ProxyArgs...), nil
}

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: "%s"}
clusterCIDR: "%s"
bindAddress: 0.0.0.0
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
nodePortAddresses: ["%s/32"]
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`

// missing names what must be built before a node of this kind can run.
func missing(c NodeConfig) error {
	need := map[string]string{filepath.Join(harness.Top(), "bin/worknode"): "make build", Program("kubernetes"): "scripts/kubernetes"}
	if c.Runtime == Upstream {
		need[upstreamBin("containerd")], need[upstreamBin("runc")] = "scripts/upstream", "scripts/upstream"
	}
	var lacks []string
	for file, by := range need {
		if _, err := os.Stat(file); err != nil {
			lacks = append(lacks, filepath.Base(file)+" (run "+by+")")
		}
	}
	if len(lacks) > 0 {
		return fmt.Errorf("not built: %s", strings.Join(lacks, ", "))
	}
	return nil
}
