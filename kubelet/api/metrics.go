package api

import (
	"bytes"
	"fmt"
	"net/http"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// counters are the server's own; all only grow.
type counters struct{ requests, unauthorized, forbidden, refused atomic.Uint64 }

// page collects metrics in Prometheus' text format. A client library's registry would cost each of the node's
// processes memory for what is a few lines of printing.
// Source: Prometheus, exposition formats, text format 0.0.4.
type page struct{ bytes.Buffer }

func (p *page) head(name, kind, help string) {
	fmt.Fprintf(p, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// sample prints one value; labels are pairs of name and value.
func (p *page) sample(name string, value float64, labels ...string) {
	p.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		p.WriteByte(",{"[b2i(i == 0)])
		p.WriteString(labels[i] + `="` + escape.Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 0 {
		p.WriteByte('}')
	}
	p.WriteByte(' ')
	p.Write(strconv.AppendFloat(nil, value, 'g', -1, 64))
	p.WriteByte('\n')
}

var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p *page) send(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(p.Bytes()) // a collector that hung up wants no answer
}

func (s *Server) getMetrics(w http.ResponseWriter, _ *http.Request) {
	var p page
	p.head("kubelet_node_name", "gauge", "The node's name. The count is always 1.")
	p.sample("kubelet_node_name", 1, "node", s.NodeName)

	running, states := 0, map[string]int{"created": 0, "running": 0, "exited": 0}
	for _, pod := range s.Pods.List() {
		alive := false
		for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
			for i := range list {
				switch st := &list[i].State; {
				case st.Running != nil:
					states["running"]++
					alive = true
				case st.Terminated != nil:
					states["exited"]++
				case list[i].ContainerID != "":
					states["created"]++
				}
			}
		}
		running += b2i(alive)
	}
	p.head("kubelet_running_pods", "gauge", "Number of pods that have a running container")
	p.sample("kubelet_running_pods", float64(running))
	p.head("kubelet_running_containers", "gauge", "Number of containers by state")
	for _, state := range []string{"created", "exited", "running"} {
		p.sample("kubelet_running_containers", float64(states[state]), "container_state", state)
	}
	p.head("kubelet_http_inflight_requests", "gauge", "Requests to this server being answered")
	p.sample("kubelet_http_inflight_requests", float64(s.busy.Load()))
	p.head("kubelet_http_requests_total", "counter", "Requests to this server by what became of them")
	p.sample("kubelet_http_requests_total", float64(s.count.requests.Load()), "result", "allowed")
	p.sample("kubelet_http_requests_total", float64(s.count.unauthorized.Load()), "result", "unauthorized")
	p.sample("kubelet_http_requests_total", float64(s.count.forbidden.Load()), "result", "forbidden")
	p.sample("kubelet_http_requests_total", float64(s.count.refused.Load()), "result", "refused")

	goruntime := []metrics.Sample{{Name: "/sched/goroutines:goroutines"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(goruntime)
	p.head("go_goroutines", "gauge", "Number of goroutines that currently exist.")
	p.sample("go_goroutines", float64(goruntime[0].Value.Uint64()))
	p.head("go_memstats_heap_alloc_bytes", "gauge", "Number of heap bytes allocated and currently in use.")
	p.sample("go_memstats_heap_alloc_bytes", float64(goruntime[1].Value.Uint64()))
	if s.Metrics != nil {
		s.Metrics(&p)
	}
	p.send(w)
}

// getResourceMetrics is what the metrics server reads for kubectl top and the autoscalers.
func (s *Server) getResourceMetrics(w http.ResponseWriter, r *http.Request) {
	var p page
	pods, err := s.podStats(r.Context())
	node := nodeStats(s.NodeName, s.RootDir, time.Now())
	p.head("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds")
	if node.CPU != nil {
		p.sample("node_cpu_usage_seconds_total", float64(*node.CPU.UsageCoreNanoSeconds)/1e9)
	}
	p.head("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes")
	if node.Memory != nil {
		p.sample("node_memory_working_set_bytes", float64(*node.Memory.WorkingSetBytes))
	}
	cpu := func(c *cri.CpuUsage) (float64, bool) {
		return float64(c.GetUsageCoreNanoSeconds().GetValue()) / 1e9, c.GetUsageCoreNanoSeconds() != nil
	}
	memory := func(m *cri.MemoryUsage) (float64, bool) {
		return float64(m.GetWorkingSetBytes().GetValue()), m.GetWorkingSetBytes() != nil
	}
	p.head("pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds")
	eachPod(&p, pods, "pod_cpu_usage_seconds_total", func(l *cri.LinuxPodSandboxStats) (float64, bool) { return cpu(l.Cpu) })
	p.head("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes")
	eachPod(&p, pods, "pod_memory_working_set_bytes", func(l *cri.LinuxPodSandboxStats) (float64, bool) { return memory(l.Memory) })
	p.head("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the container in core-seconds")
	eachContainer(&p, pods, "container_cpu_usage_seconds_total", func(c *cri.ContainerStats) (float64, bool) { return cpu(c.Cpu) })
	p.head("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes")
	eachContainer(&p, pods, "container_memory_working_set_bytes", func(c *cri.ContainerStats) (float64, bool) { return memory(c.Memory) })
	p.head("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise")
	p.sample("resource_scrape_error", float64(b2i(err != nil)))
	p.send(w)
}

func eachPod(p *page, pods []*cri.PodSandboxStats, name string, value func(*cri.LinuxPodSandboxStats) (float64, bool)) {
	for _, s := range pods {
		if v, ok := value(s.Linux); ok {
			m := s.Attributes.Metadata
			p.sample(name, v, "namespace", m.Namespace, "pod", m.Name)
		}
	}
}

func eachContainer(p *page, pods []*cri.PodSandboxStats, name string, value func(*cri.ContainerStats) (float64, bool)) {
	for _, s := range pods {
		for _, c := range s.Linux.Containers {
			if v, ok := value(c); ok {
				m := s.Attributes.Metadata
				p.sample(name, v, "container", c.GetAttributes().GetMetadata().GetName(), "namespace", m.Namespace, "pod", m.Name)
			}
		}
	}
}
