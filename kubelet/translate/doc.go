// Package translate turns a Pod into the words of others: the CRI messages that start it, the text of its hosts file,
// the values of its downward API, its QoS class and its numbers for the kernel.
//
// It is pure: no clock, no disk, no network. What it needs to know of the node comes in a Node, what it needs of other
// API objects through Objects. It does not decide when something starts; that is plan.
//
// Errors of Container and Sandbox mean that the pod's own text, or an object it names, does not allow the container:
// kinds Invalid, NotFound and Unsupported, which users know as CreateContainerConfigError.
package translate

import (
	v1 "k8s.io/api/core/v1"
)

// Node is what a pod may learn about the node it runs on, and the node's settings that shape its containers.
type Node struct {
	Name          string
	IPs           []string // of the node, the preferred family first; at most one per family
	ClusterDNS    []string // addresses of the cluster's DNS servers
	ClusterDomain string   // "cluster.local"; empty: pods get no cluster search domains
	HostDNS       DNS      // the node's resolv.conf
	HostHosts     []byte   // the node's /etc/hosts, for pods on the host's network

	Capacity    v1.ResourceList // memory capacity scales oom_score_adj
	Allocatable v1.ResourceList // default of limits that a container does not set, as the downward API tells them

	CgroupV2          bool
	LogRoot           string // /var/log/pods
	SeccompRoot       string // where profiles of type Localhost are found, <kubelet root>/seccomp
	CPUQuotaPeriodUs  int64  // CFS period in microseconds; zero: 100 ms
	NoCPUQuota        bool   // CPU limits are not enforced; Source: KubeletConfiguration, cpuCFSQuota
	SeccompDefault    bool   // RuntimeDefault for containers that name no profile
	RecursiveReadOnly bool   // the runtime can make mounts recursively read-only
}

// Objects gives the ConfigMaps and Secrets that a pod names.
// Errors: NotFound if the API server has no such object; Temporary if it is not known yet.
type Objects interface {
	ConfigMap(ns, name string) (*v1.ConfigMap, error)
	Secret(ns, name string) (*v1.Secret, error)
}

// Labels and annotations by which kubelets, crictl and log collectors know sandboxes and containers.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"

	NoteHash              = "io.kubernetes.container.hash"
	NoteRestartCount      = "io.kubernetes.container.restartCount"
	NoteTerminationPath   = "io.kubernetes.container.terminationMessagePath"
	NoteTerminationPolicy = "io.kubernetes.container.terminationMessagePolicy"
	NotePreStop           = "io.kubernetes.container.preStopHandler"
	NotePorts             = "io.kubernetes.container.ports"
	NoteTerminationGrace  = "io.kubernetes.pod.terminationGracePeriod"
	NoteDeletionGrace     = "io.kubernetes.pod.deletionGracePeriod"
)

// podText names a pod in errors as users know it from events: name_namespace(uid).
func podText(pod *v1.Pod) string {
	return pod.Name + "_" + pod.Namespace + "(" + string(pod.UID) + ")"
}
