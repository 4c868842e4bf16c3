package api

import (
	"context"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// metricsWithin bounds what a scrape waits for the runtime.
const metricsWithin = 10 * time.Second

// getContainerMetrics shows what containers use under the names of cAdvisor, as the runtime words them, and the machine
// beside them, which no runtime knows of.
// Source: KEP-2371, CRI pod and container stats; CRI ListMetricDescriptors and ListPodSandboxMetrics.
func (s *Server) getContainerMetrics(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), metricsWithin)
	defer cancel()
	var p page
	s.machineMetrics(&p)
	names, err := s.Runtime.ListMetricDescriptors(ctx, &cri.ListMetricDescriptorsRequest{})
	if err != nil {
		fail(w, kindOfCRI(err))
		return
	}
	values, err := s.Runtime.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		fail(w, kindOfCRI(err))
		return
	}
	pods := append(values.GetPodMetrics(), &cri.PodSandboxMetrics{Metrics: s.rootMetrics(names.GetDescriptors())})
	writeMetrics(&p, names.GetDescriptors(), pods)
	p.send(w)
}

// writeMetrics prints samples by metric, as the text format wants them. A sample that no descriptor announces, or with
// other labels than announced, is left out: its meaning is unknown.
func writeMetrics(p *page, descriptors []*cri.MetricDescriptor, pods []*cri.PodSandboxMetrics) {
	about := map[string]*cri.MetricDescriptor{}
	for _, d := range descriptors {
		about[d.Name] = d
	}
	found := map[string][]*cri.Metric{}
	for _, pod := range pods {
		for _, m := range pod.GetMetrics() {
			found[m.Name] = append(found[m.Name], m)
		}
		for _, c := range pod.GetContainerMetrics() {
			for _, m := range c.GetMetrics() {
				found[m.Name] = append(found[m.Name], m)
			}
		}
	}
	names := make([]string, 0, len(found))
	for name := range found {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		d := about[name]
		if d == nil {
			continue
		}
		kind := "gauge"
		if found[name][0].MetricType == cri.MetricType_COUNTER {
			kind = "counter"
		}
		p.head(name, kind, d.Help)
		labels := make([]string, 2*len(d.LabelKeys))
		for _, m := range found[name] {
			if len(m.LabelValues) != len(d.LabelKeys) || m.Value == nil {
				continue
			}
			for i, key := range d.LabelKeys {
				labels[2*i], labels[2*i+1] = key, m.LabelValues[i]
			}
			p.sample(name, float64(m.Value.Value), labels...)
		}
	}
}

// machineMetrics say how large the machine is.
func (s *Server) machineMetrics(p *page) {
	p.head("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.")
	p.sample("machine_memory_bytes", float64(meminfo()["MemTotal"]))
	p.head("machine_cpu_cores", "gauge", "Number of logical CPU cores.")
	p.sample("machine_cpu_cores", float64(runtime.NumCPU()))
}

// rootMetrics are what the machine as a whole uses, as of the cgroup "/": dashboards compare pods with it.
func (s *Server) rootMetrics(descriptors []*cri.MetricDescriptor) (out []*cri.Metric) {
	n := nodeStats(s.NodeName, s.RootDir, time.Now())
	values := map[string]uint64{}
	if n.CPU != nil {
		values["container_cpu_usage_seconds_total"] = *n.CPU.UsageCoreNanoSeconds / uint64(time.Second)
	}
	if n.Memory != nil {
		values["container_memory_usage_bytes"] = *n.Memory.UsageBytes
		values["container_memory_working_set_bytes"] = *n.Memory.WorkingSetBytes
		values["container_memory_rss"] = *n.Memory.RSSBytes
	}
	for _, d := range descriptors {
		v, ok := values[d.Name]
		if !ok {
			continue
		}
		delete(values, d.Name) // a name may be announced for pods and for containers
		m := &cri.Metric{Name: d.Name, MetricType: cri.MetricType_GAUGE, Value: &cri.UInt64Value{Value: v}}
		if strings.HasSuffix(d.Name, "_total") {
			m.MetricType = cri.MetricType_COUNTER
		}
		for _, key := range d.LabelKeys {
			m.LabelValues = append(m.LabelValues, map[string]string{"id": "/", "cpu": "total"}[key])
		}
		out = append(out, m)
	}
	return out
}

// getProbeMetrics shows how the probes of containers went.
func (s *Server) getProbeMetrics(w http.ResponseWriter, _ *http.Request) {
	var p page
	if s.ProbeMetrics != nil {
		s.ProbeMetrics(&p)
	}
	p.send(w)
}
