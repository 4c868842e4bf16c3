package api

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"worknode/standalone/store"
)

// podSummary is what the STATUS, READY and RESTARTS columns say. The words are those that every Kubernetes user greps for.
type podSummary struct {
	status      string
	ready, all  int
	restarts    int
	lastRestart time.Time
}

func podRow(s *Server, obj store.Object) []any {
	pod := obj.(*corev1.Pod)
	sum := summarize(pod)
	ip := pod.Status.PodIP
	if len(pod.Status.PodIPs) > 0 {
		ip = pod.Status.PodIPs[0].IP
	}
	gates := "<none>"
	if n := len(pod.Spec.ReadinessGates); n > 0 {
		met := 0
		for _, g := range pod.Spec.ReadinessGates {
			for _, c := range pod.Status.Conditions {
				if c.Type == g.ConditionType && c.Status == corev1.ConditionTrue {
					met++
				}
			}
		}
		gates = fmt.Sprintf("%d/%d", met, n)
	}
	return []any{pod.Name, fmt.Sprintf("%d/%d", sum.ready, sum.all), sum.status, s.sinceRestart(sum.restarts, sum.lastRestart), s.age(pod.CreationTimestamp),
		none(ip), none(pod.Spec.NodeName), none(pod.Status.NominatedNodeName), gates}
}

func summarize(pod *corev1.Pod) podSummary {
	sum := podSummary{status: string(pod.Status.Phase), all: len(pod.Spec.Containers)}
	if pod.Status.Reason != "" {
		sum.status = pod.Status.Reason
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			sum.status = corev1.PodReasonSchedulingGated
		}
	}
	initializing := sum.initContainers(pod)
	if !initializing || isTrueCondition(pod, corev1.PodInitialized) {
		sum.containers(pod, initializing)
	}
	if pod.DeletionTimestamp != nil {
		if pod.Status.Reason == "NodeLost" {
			sum.status = "Unknown"
		} else if pod.Status.Phase != corev1.PodFailed && pod.Status.Phase != corev1.PodSucceeded {
			sum.status = "Terminating"
		}
	}
	return sum
}

func isTrueCondition(pod *corev1.Pod, kind corev1.PodConditionType) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func sidecars(pod *corev1.Pod) map[string]bool {
	out := map[string]bool{}
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out[c.Name] = true
		}
	}
	return out
}

func ended(state *corev1.ContainerStateTerminated) string {
	switch {
	case state.Reason != "":
		return state.Reason
	case state.Signal != 0:
		return fmt.Sprintf("Signal:%d", state.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", state.ExitCode)
}

func (sum *podSummary) restarted(c *corev1.ContainerStatus) {
	sum.restarts += int(c.RestartCount)
	if t := c.LastTerminationState.Terminated; t != nil && sum.lastRestart.Before(t.FinishedAt.Time) {
		sum.lastRestart = t.FinishedAt.Time
	}
}

// initContainers looks for the first init container that is not through and says whether there is one.
func (sum *podSummary) initContainers(pod *corev1.Pod) (busy bool) {
	sidecar := sidecars(pod)
	sum.all += len(sidecar)
	total := len(pod.Spec.InitContainers)
	for i := range pod.Status.InitContainerStatuses {
		c := &pod.Status.InitContainerStatuses[i]
		sum.restarted(c)
		if sidecar[c.Name] && c.Ready && c.Started != nil && *c.Started {
			sum.ready++
		}
		if busy {
			continue
		}
		switch t, w := c.State.Terminated, c.State.Waiting; {
		case t != nil && t.ExitCode == 0:
		case sidecar[c.Name] && c.Started != nil && *c.Started:
		case t != nil:
			sum.status, busy = "Init:"+ended(t), true
		case w != nil && w.Reason != "" && w.Reason != "PodInitializing":
			sum.status, busy = "Init:"+w.Reason, true
		default:
			sum.status, busy = fmt.Sprintf("Init:%d/%d", i, total), true
		}
	}
	return busy
}

// containers looks at the main containers; the last one with something to say wins, as in kubectl.
func (sum *podSummary) containers(pod *corev1.Pod, initializing bool) {
	if !initializing { // restarts of init containers matter only while they run
		sum.restarts, sum.lastRestart = 0, time.Time{}
		sidecar := sidecars(pod)
		for i := range pod.Status.InitContainerStatuses {
			if c := &pod.Status.InitContainerStatuses[i]; sidecar[c.Name] {
				sum.restarted(c)
			}
		}
	}
	running := false
	for i := len(pod.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := &pod.Status.ContainerStatuses[i]
		sum.restarted(c)
		switch t, w := c.State.Terminated, c.State.Waiting; {
		case w != nil && w.Reason != "":
			sum.status = w.Reason
		case t != nil:
			sum.status = ended(t)
		case c.Ready && c.State.Running != nil:
			running = true
			sum.ready++
		}
	}
	// A container is through while another runs: the pod runs.
	if sum.status == "Completed" && running {
		sum.status = "NotReady"
		if isTrueCondition(pod, corev1.PodReady) {
			sum.status = "Running"
		}
	}
}
