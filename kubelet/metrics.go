package kubelet

import (
	"fmt"
	"io"

	"worknode/kubelet/state"
)

// metrics writes the kubelet's own figures in Prometheus text format, under the names that dashboards know.
func (r *room) metrics(w io.Writer) {
	r.mu.Lock()
	actors := make([]*actor, 0, len(r.pods))
	for _, a := range r.pods {
		actors = append(actors, a)
	}
	r.mu.Unlock()
	running, phases := 0, map[state.Phase]int{}
	for _, a := range actors {
		alive := false
		for _, c := range a.view.Load().Containers {
			phases[c.Phase]++
			alive = alive || c.Phase == state.Running
		}
		if alive {
			running++
		}
	}
	fmt.Fprintf(w, "# HELP kubelet_desired_pods Pods that this kubelet has to do with.\n# TYPE kubelet_desired_pods gauge\nkubelet_desired_pods %d\n", len(actors))
	fmt.Fprintf(w, "# HELP kubelet_running_pods Pods with a running container.\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods %d\n", running)
	fmt.Fprint(w, "# HELP kubelet_running_containers Containers by state.\n# TYPE kubelet_running_containers gauge\n")
	for _, p := range []state.Phase{state.Created, state.Running, state.Exited} {
		fmt.Fprintf(w, "kubelet_running_containers{container_state=%q} %d\n", p, phases[p])
	}
	fmt.Fprintf(w, "# HELP worknode_kubelet_missed_events_total Audits that found what no event had told.\n# TYPE worknode_kubelet_missed_events_total counter\nworknode_kubelet_missed_events_total %d\n", r.missed.Load())
}
