package plan

import (
	"slices"
	"sort"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/kubelet/state"
)

// report computes the pod's status as the API documents it. It leaves the fields to the caller that belong to the node
// (hostIP) or never change (qosClass), and keeps conditions of other owners as they are.
func (p *planner) report() {
	old := &p.have.Status
	s := v1.PodStatus{
		ObservedGeneration: max(p.pod.Generation, old.ObservedGeneration), NominatedNodeName: old.NominatedNodeName,
		HostIP: old.HostIP, HostIPs: old.HostIPs, StartTime: old.StartTime, QOSClass: old.QOSClass,
	}
	if s.StartTime == nil && p.want.Reject.Reason == "" {
		t := second(p.now)
		s.StartTime = &t
	}
	p.addresses(&s)
	// A pod that was refused has nothing to say about containers.
	refused := len(p.have.Containers) == 0 && (p.want.Reject.Reason != "" || terminal(old.Phase) && len(old.ContainerStatuses) == 0)
	if n := len(p.pod.Spec.InitContainers); n > 0 && !refused {
		s.InitContainerStatuses = make([]v1.ContainerStatus, n)
		for i := range p.pod.Spec.InitContainers {
			s.InitContainerStatuses[i] = p.container(&p.pod.Spec.InitContainers[i], true)
		}
	}
	if n := len(p.pod.Spec.Containers); n > 0 && !refused {
		s.ContainerStatuses = make([]v1.ContainerStatus, n)
		for i := range p.pod.Spec.Containers {
			s.ContainerStatuses[i] = p.container(&p.pod.Spec.Containers[i], false)
		}
	}
	if n := len(p.pod.Spec.EphemeralContainers); n > 0 && !refused {
		s.EphemeralContainerStatuses = make([]v1.ContainerStatus, n)
		for i := range p.pod.Spec.EphemeralContainers {
			s.EphemeralContainerStatuses[i] = p.ephemeralStatus(ephemeral(&p.pod.Spec.EphemeralContainers[i]))
		}
	}
	s.Phase = p.phase(&s)
	if p.End.Reason != "" {
		s.Reason, s.Message = p.End.Reason, p.End.Message
	} else if terminal(s.Phase) && terminal(old.Phase) {
		s.Reason, s.Message = old.Reason, old.Message
	}
	if p.want.Reject.Reason != "" {
		s.Message = "Pod was rejected: " + p.want.Reject.Message
	}
	s.Conditions = p.conditions(&s)
	p.Status = s
}

func (p *planner) addresses(s *v1.PodStatus) {
	if p.pod.Spec.HostNetwork {
		s.PodIP, s.PodIPs = s.HostIP, nil
		for _, h := range s.HostIPs {
			s.PodIPs = append(s.PodIPs, v1.PodIP(h))
		}
		return
	}
	ips := p.have.Sandbox.IPs
	if len(ips) == 0 {
		s.PodIP, s.PodIPs = p.have.Status.PodIP, p.have.Status.PodIPs
		return
	}
	s.PodIP = ips[0]
	if slices.EqualFunc(ips, p.have.Status.PodIPs, func(ip string, old v1.PodIP) bool { return ip == old.IP }) {
		s.PodIPs = p.have.Status.PodIPs
		return
	}
	for _, ip := range ips {
		s.PodIPs = append(s.PodIPs, v1.PodIP{IP: ip})
	}
}

func terminal(phase v1.PodPhase) bool { return phase == v1.PodFailed || phase == v1.PodSucceeded }

// phase sums the containers up. A terminal phase is final, and is not reported while a process may still run: whoever
// sees it may start a successor. Source: API docs of PodPhase.
func (p *planner) phase(s *v1.PodStatus) v1.PodPhase {
	old := p.have.Status.Phase
	if terminal(old) {
		return old
	}
	next := p.sum(s)
	if terminal(next) && (p.have.Alive() || p.open()) {
		if old == "" {
			return v1.PodPending
		}
		return old
	}
	if old == v1.PodRunning && next == v1.PodPending {
		return old // it ran; that the next attempt still waits does not undo it
	}
	return next
}

// open says whether the end of some container is not known yet: it is being started, or ended and was not read.
func (p *planner) open() bool {
	for i := range p.have.Containers {
		if c := &p.have.Containers[i]; c.Phase == state.Exited && !c.Known {
			return true
		}
	}
	for i := range p.have.Running {
		if hasPrefix(p.have.Running[i].Key, "start/") {
			return true
		}
	}
	return p.have.Blind()
}

func (p *planner) sum(s *v1.PodStatus) v1.PodPhase {
	if p.End.Reason != "" {
		return v1.PodFailed
	}
	pendingInit := false
	for i := range s.InitContainerStatuses {
		spec, st := &p.pod.Spec.InitContainers[i], &s.InitContainerStatuses[i]
		c := p.have.Newest(spec.Name)
		switch {
		case Sidecar(spec):
			pendingInit = pendingInit || st.Started == nil || !*st.Started
		case c != nil && c.Phase == state.Exited && c.Known && c.ExitCode != 0 && !again(p.pod, spec, true, c):
			return v1.PodFailed
		default:
			pendingInit = pendingInit || st.State.Terminated == nil || st.State.Terminated.ExitCode != 0
		}
	}
	var waiting, running, ended, failed, restarts int
	for i := range s.ContainerStatuses {
		spec, st := &p.pod.Spec.Containers[i], &s.ContainerStatuses[i]
		c := p.have.Newest(spec.Name)
		switch {
		case st.State.Running != nil:
			running++
		case st.State.Terminated != nil, st.State.Waiting != nil && st.LastTerminationState.Terminated != nil:
			ended++
			t := st.State.Terminated
			if t == nil {
				t = st.LastTerminationState.Terminated
			}
			if t.ExitCode != 0 {
				failed++
			}
			if c == nil && forever(p.pod, spec) || c != nil && again(p.pod, spec, false, c) {
				restarts++
			}
		default:
			waiting++
		}
	}
	begun := running+ended > 0
	switch {
	case p.End.Begun() && !p.have.Alive():
		// It ended while it lived, or finished by itself: nothing will run any more.
		if !begun || waiting > 0 || failed > 0 {
			return v1.PodFailed
		}
		return v1.PodSucceeded
	case pendingInit && !begun, waiting > 0:
		return v1.PodPending
	case running > 0, restarts > 0:
		return v1.PodRunning
	case failed > 0:
		return v1.PodFailed
	case ended > 0:
		return v1.PodSucceeded
	}
	return v1.PodPending
}

// conditions computes the five conditions that the kubelet owns and carries over all others.
func (p *planner) conditions(s *v1.PodStatus) []v1.PodCondition {
	now := second(p.now)
	old := p.have.Status.Conditions
	out := make([]v1.PodCondition, 0, len(old)+5)
	set := func(kind v1.PodConditionType, ok bool, reason, message string) {
		c := v1.PodCondition{Type: kind, ObservedGeneration: s.ObservedGeneration, Status: v1.ConditionFalse, LastTransitionTime: now, Reason: reason, Message: message}
		if ok {
			c.Status, c.Message = v1.ConditionTrue, ""
			if reason != podCompleted {
				c.Reason = ""
			}
		}
		for i := range old {
			if old[i].Type == kind && old[i].Status == c.Status {
				c.LastTransitionTime = old[i].LastTransitionTime
			}
		}
		out = append(out, c)
	}
	set(v1.PodReadyToStartContainers, p.standing(), "PodSandboxNotReady", "")
	ok, reason, message := p.initialised(s)
	set(v1.PodInitialized, ok, reason, message)
	ok, reason, message = p.containersReady(s)
	ready, readyReason, readyMessage := p.gates(ok, reason, message)
	set(v1.PodReady, ready, readyReason, readyMessage)
	set(v1.ContainersReady, ok, reason, message)
	set(v1.PodScheduled, true, "", "")
	for i := range old {
		if !slices.ContainsFunc(out, func(c v1.PodCondition) bool { return c.Type == old[i].Type }) {
			out = append(out, old[i])
		}
	}
	return out
}

const podCompleted = "PodCompleted"

// standing says whether the pod has what its containers stand on.
func (p *planner) standing() bool {
	h := p.have
	return h.Sandbox.ID != "" && h.Sandbox.Ready && !h.Stopped && (h.Volumes != state.None || p.End.Begun()) &&
		(len(h.Sandbox.IPs) > 0 || p.pod.Spec.HostNetwork)
}

func (p *planner) initialised(s *v1.PodStatus) (ok bool, reason, message string) {
	if s.Phase == v1.PodSucceeded {
		return true, podCompleted, ""
	}
	for i := range s.ContainerStatuses {
		if c := &s.ContainerStatuses[i]; c.State.Running != nil || c.State.Terminated != nil || c.LastTerminationState.Terminated != nil {
			return true, "", ""
		}
	}
	var open []string
	for i := range s.InitContainerStatuses {
		c := &s.InitContainerStatuses[i]
		if !c.Ready && !(Sidecar(&p.pod.Spec.InitContainers[i]) && c.Started != nil && *c.Started) {
			open = append(open, c.Name)
		}
	}
	if len(open) > 0 {
		return false, "ContainersNotInitialized", "containers with incomplete status: [" + strings.Join(open, " ") + "]"
	}
	return true, "", ""
}

func (p *planner) containersReady(s *v1.PodStatus) (ok bool, reason, message string) {
	switch s.Phase {
	case v1.PodSucceeded:
		return false, podCompleted, ""
	case v1.PodFailed:
		return false, "PodFailed", ""
	}
	var unready []string
	for i := range s.InitContainerStatuses {
		if c := &s.InitContainerStatuses[i]; Sidecar(&p.pod.Spec.InitContainers[i]) && !c.Ready {
			unready = append(unready, c.Name)
		}
	}
	for i := range s.ContainerStatuses {
		if c := &s.ContainerStatuses[i]; !c.Ready {
			unready = append(unready, c.Name)
		}
	}
	if len(unready) > 0 {
		return false, "ContainersNotReady", "containers with unready status: [" + strings.Join(unready, " ") + "]"
	}
	return true, "", ""
}

// gates adds what other controllers have to say about readiness. Source: KEP-580, spec.readinessGates.
func (p *planner) gates(ready bool, reason, message string) (bool, string, string) {
	if !ready {
		return false, reason, message
	}
	var closed []string
	for _, g := range p.pod.Spec.ReadinessGates {
		c := slices.IndexFunc(p.have.Status.Conditions, func(c v1.PodCondition) bool { return c.Type == g.ConditionType })
		switch {
		case c < 0:
			closed = append(closed, "corresponding condition of pod readiness gate \""+string(g.ConditionType)+"\" does not exist.")
		case p.have.Status.Conditions[c].Status != v1.ConditionTrue:
			closed = append(closed, "the status of pod readiness gate \""+string(g.ConditionType)+"\" is not \"True\", but "+string(p.have.Status.Conditions[c].Status))
		}
	}
	if len(closed) == 0 {
		return true, "", ""
	}
	sort.Strings(closed)
	return false, "ReadinessGatesNotReady", strings.Join(closed, ", ")
}

// second is a time as the API carries it.
func second(t time.Time) metav1.Time { return metav1.Time{Time: t.Truncate(time.Second)} }
