package cni

import (
	"fmt"
	"log/slog"
	"math"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Request is what the plugins may want to know of a sandbox.
type Request struct {
	Sandbox     string // id
	NetNS       string // path
	Namespace   string
	Name        string
	UID         string
	Annotations map[string]string
	Cgroup      string
	Ports       []Port
	DNS         DNS
}

// Port is a host port, in the words of the portmap plugin. Source: CNI conventions, portMappings.
type Port struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// DNS is the pod's resolver. Source: CNI conventions, dns.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// args are the variables that Kubernetes' plugins know. IgnoreUnknown lets the others be.
func (r Request) args() [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", r.Namespace}, {"K8S_POD_NAME", r.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", r.Sandbox}, {"K8S_POD_UID", r.UID},
	}
}

// capabilities are offered to every plugin; each gets those that its configuration asks for.
// Source: CNI conventions, "dynamic plugin specific fields"; the annotations' key is containerd's.
func (r Request) capabilities(podCIDRs []string) map[string]any {
	out := map[string]any{}
	if len(r.Ports) > 0 {
		out["portMappings"] = r.Ports
	}
	if d := r.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		out["dns"] = d
	}
	if r.Cgroup != "" {
		out["cgroupPath"] = r.Cgroup
	}
	if len(r.Annotations) > 0 {
		out["io.kubernetes.cri.pod-annotations"] = r.Annotations
	}
	if b := r.bandwidth(); len(b) > 0 {
		out["bandwidth"] = b
	}
	var ranges [][]map[string]string
	for _, c := range podCIDRs {
		ranges = append(ranges, []map[string]string{{"subnet": c}})
	}
	if len(ranges) > 0 {
		out["ipRanges"] = ranges
	}
	return out
}

// bandwidth reads the annotations that limit a pod, in bits a second. One that makes no sense is no limit, and is logged.
// Source: Kubernetes docs, network plugins, support traffic shaping; the bounds are kubelet's.
func (r Request) bandwidth() map[string]int64 {
	out := map[string]int64{}
	for key, name := range map[string]string{"kubernetes.io/ingress-bandwidth": "ingress", "kubernetes.io/egress-bandwidth": "egress"} {
		text, ok := r.Annotations[key]
		if !ok {
			continue
		}
		q, err := resource.ParseQuantity(text)
		if err == nil && (q.Value() < 1e3 || q.Value() > 1e15) {
			err = fmt.Errorf("must be between 1k and 1P bits a second")
		}
		if err != nil {
			slog.Warn("pod's bandwidth is not limited", "pod", r.Namespace+"/"+r.Name, "annotation", key, "value", text, "error", err)
			continue
		}
		// The burst bounds a bucket, in bits; as large as the plugin takes, so that the rate alone decides.
		out[name+"Rate"], out[name+"Burst"] = q.Value(), math.MaxInt32
	}
	return out
}
