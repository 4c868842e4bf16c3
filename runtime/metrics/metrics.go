// Package metrics words what a container uses as the metrics that the field graphs: cAdvisor's names and labels, as CRI's
// ListMetricDescriptors and ListPodSandboxMetrics hand them to a kubelet. It reads nothing: a Sample goes in.
//
// CRI carries whole numbers only, so seconds lose their fraction.
// Source: KEP-2371; cAdvisor's documentation of its Prometheus metrics.
package metrics

import (
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kernel/cgroup"
)

// Sample is one container, or with Network alone one pod, at one moment.
type Sample struct {
	Labels Labels
	Now    time.Time
	Start  time.Time
	Use    cgroup.Detail
	Spec   *cri.LinuxContainerResources
	Files  uint64 // open file descriptors of all processes
	Socks  uint64 // sockets among them
	Procs  uint64 // processes
	NoFile uint64 // soft limit of open files of the first process

	Device     string // what the writable layer lies on
	FsUsage    uint64 // bytes of the writable layer
	FsLimit    uint64 // bytes of its file system
	Inodes     uint64
	InodesFree uint64
	Blocks     []Block
	Network    []Interface
}

// Labels say whose numbers these are. Container is empty for a pod as a whole.
type Labels struct{ ID, Name, Image, Namespace, Pod, Container string }

// Block is a block device with its name below /dev.
type Block struct {
	Name string
	cgroup.DeviceIO
}

// Interface is what one network device of a pod carried.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// point is one value with the labels that its metric has beside the common ones.
type point struct {
	value uint64
	extra []string
}

// metric is one row of the table of what is served.
type metric struct {
	name, help string
	kind       cri.MetricType
	extra      []string // label keys beside the common ones
	points     func(*Sample) []point
}

var common = [...]string{"container", "id", "image", "name", "namespace", "pod"}

func (l Labels) values(extra []string) []string {
	return append([]string{l.Container, l.ID, l.Image, l.Name, l.Namespace, l.Pod}, extra...)
}

// Descriptors lists all metrics that may be served.
func Descriptors() []*cri.MetricDescriptor {
	var out []*cri.MetricDescriptor
	for _, list := range [][]metric{container(), pod()} {
		for _, m := range list {
			out = append(out, &cri.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: append(common[:], m.extra...)})
		}
	}
	return out
}

// Container words one container's sample, Pod a pod's network.
func Container(s *Sample) []*cri.Metric { return word(container(), s) }

// Pod words what a pod's containers share.
func Pod(s *Sample) []*cri.Metric { return word(pod(), s) }

func word(list []metric, s *Sample) []*cri.Metric {
	out := make([]*cri.Metric, 0, len(list))
	for _, m := range list {
		for _, p := range m.points(s) {
			out = append(out, &cri.Metric{Name: m.name, MetricType: m.kind, LabelValues: s.Labels.values(p.extra), Value: &cri.UInt64Value{Value: p.value}})
		}
	}
	return out
}

func one(v uint64) []point { return []point{{value: v}} }

func seconds(nanos uint64) []point { return one(nanos / uint64(time.Second)) }
