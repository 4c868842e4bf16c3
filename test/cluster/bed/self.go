package bed

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"worknode/kube"
	"worknode/test/harness"
)

// ControlPlaneImage is what scripts/kubernetes makes of the programs it built, under one name for each of the four.
const ControlPlaneImage = ".cache/cluster/kubernetes.tar"

// Components are the static pods of a control plane that runs on a node of its own, in the order of need.
var Components = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}

// UpSelf starts a machine on which nothing but worknode runs, with a folder of four static pods: a control plane, which
// the node then joins. The node's parts are started again when they end. Its Cluster has no processes of its own.
func UpSelf(dir, name string) (*Cluster, *Node, error) {
	c := &Cluster{Dir: dir, group: group("/bed-" + name), next: 2}
	if len(c.group.members()) > 0 {
		return c, nil, fmt.Errorf("a bed named %s runs already: end it first", name)
	}
	image := filepath.Join(harness.Top(), ControlPlaneImage)
	if _, err := os.Stat(image); err != nil {
		return c, nil, fmt.Errorf("%w: run scripts/kubernetes", err)
	}
	n := &Node{Name: "control-plane", IP: CoreIP, PodCIDR: "10.88.1.0/24", cluster: c, again: true, Config: NodeConfig{Images: []string{"app", image}}}
	if err := os.MkdirAll(dir+"/pki", 0o700); err != nil {
		return c, n, err
	}
	if err := c.certificates(); err != nil {
		return c, n, err
	}
	var err error
	if n.space, err = newSpace(filepath.Join(dir, n.Name), c.group+"/"+group(n.Name)); err != nil {
		return c, n, err
	}
	if c.core = n.space; c.core.furnishCore() != nil {
		return c, n, fmt.Errorf("network of the control plane: %w", err)
	}
	if err := n.furnish(); err != nil {
		return c, n, err
	}
	if c.Kube, err = c.client("admin"); err != nil {
		return c, n, err
	}
	if err := os.WriteFile(dir+"/audit.yaml", []byte(auditPolicy), 0o644); err != nil {
		return c, n, err
	}
	if err := c.manifests(n.dir + "/manifests"); err != nil {
		return c, n, err
	}
	n.Config.KubeletArgs = []string{"--pod-manifest-path", n.dir + "/manifests"}
	if err := n.startParts(); err != nil {
		return c, n, err
	}
	if err := n.WaitReady(2 * time.Minute); err != nil {
		return c, n, err
	}
	return c, n, c.wait(time.Minute, "the default service account", func(ctx context.Context) error {
		return c.Kube.REST(kube.Pods).Get().Namespace("default").Resource("serviceaccounts").Name("default").Do(ctx).Error()
	})
}

// manifests writes the four static pods.
func (c *Cluster) manifests(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, part := range map[string]struct {
		command []string
		live    v1.HTTPGetAction
	}{
		"etcd":                    {etcdCommand("/var/lib/etcd"), v1.HTTPGetAction{Path: "/livez", Port: intstr.FromInt32(2381), Host: "127.0.0.1"}},
		"kube-apiserver":          {apiserverCommand(c, c.CA), v1.HTTPGetAction{Path: "/livez", Port: intstr.FromInt32(6443), Host: CoreIP, Scheme: v1.URISchemeHTTPS}},
		"kube-controller-manager": {managerCommand(c, c.CA), v1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(10257), Host: "127.0.0.1", Scheme: v1.URISchemeHTTPS}},
		"kube-scheduler":          {schedulerCommand(c), v1.HTTPGetAction{Path: "/livez", Port: intstr.FromInt32(10259), Host: "127.0.0.1", Scheme: v1.URISchemeHTTPS}},
	} {
		text, err := json.MarshalIndent(c.staticPod(name, part.command[1:], part.live), "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name+".json"), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// staticPod is one component. It sees the bed's folder under its own path, so that the flags are those of a component
// that runs without a container.
func (c *Cluster) staticPod(name string, args []string, live v1.HTTPGetAction) *v1.Pod {
	folder := func(name, path string, kind v1.HostPathType) v1.Volume {
		return v1.Volume{Name: name, VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path, Type: &kind}}}
	}
	pod := &v1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "kube-system", Labels: map[string]string{"component": name, "tier": "control-plane"}},
		Spec: v1.PodSpec{
			HostNetwork: true, PriorityClassName: "system-node-critical",
			SecurityContext: &v1.PodSecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeRuntimeDefault}},
			Containers: []v1.Container{{
				Name: name, Image: "worknode.example/" + name + ":1", Command: append([]string{"/kubernetes", name}, args...),
				Resources:    v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("50m")}},
				VolumeMounts: []v1.VolumeMount{{Name: "bed", MountPath: c.Dir}},
				LivenessProbe: &v1.Probe{
					ProbeHandler: v1.ProbeHandler{HTTPGet: &live}, InitialDelaySeconds: 10, TimeoutSeconds: 15, FailureThreshold: 8,
				},
				ReadinessProbe: &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: &live}, PeriodSeconds: 1, TimeoutSeconds: 15},
			}},
			Volumes: []v1.Volume{folder("bed", c.Dir, v1.HostPathDirectory)},
		},
	}
	if name == "etcd" {
		pod.Spec.Volumes = append(pod.Spec.Volumes, folder("data", "/var/lib/etcd", v1.HostPathDirectoryOrCreate))
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, v1.VolumeMount{Name: "data", MountPath: "/var/lib/etcd"})
	}
	return pod
}

// Find is the process in the node, pods included, whose command line begins with these words after its path; 0: none.
func (n *Node) Find(words ...string) int {
	for _, pid := range n.group.members() {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if err != nil || len(data) == 0 {
			continue
		}
		argv := strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
		argv[0] = filepath.Base(argv[0])
		if len(argv) >= len(words) && slices.Equal(argv[:len(words)], words) {
			return pid
		}
	}
	return 0
}

// KillFound ends the process that Find finds with SIGKILL. Errors: it does not run.
func (n *Node) KillFound(words ...string) (pid int, err error) {
	if pid = n.Find(words...); pid == 0 {
		return 0, fmt.Errorf("no process %s on node %s", strings.Join(words, " "), n.Name)
	}
	return pid, syscall.Kill(pid, syscall.SIGKILL)
}
