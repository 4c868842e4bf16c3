package plan

import (
	"fmt"

	v1 "k8s.io/api/core/v1"

	"worknode/kubelet/state"
)

// container computes the status of one container.
func (p *planner) container(spec *v1.Container, init bool) v1.ContainerStatus {
	old, c := p.reported(spec.Name), p.have.Newest(spec.Name)
	s := v1.ContainerStatus{Name: spec.Name, Image: spec.Image}
	if len(spec.VolumeMounts) > 0 {
		s.VolumeMounts = mounts(spec, old)
	}
	s.AllocatedResources = spec.Resources.Requests
	no := false
	s.Started = &no
	if c == nil {
		p.unseen(spec, init, old, &s)
		return s
	}
	s.RestartCount, s.ContainerID, s.ImageID = int32(c.Attempt), p.id(c.ID), c.ImageRef
	if old != nil {
		s.RestartCount = max(s.RestartCount, old.RestartCount)
	}
	if old != nil && old.ContainerID == s.ContainerID && old.ImageID != "" {
		s.ImageID = old.ImageID // runtimes name one image in several ways
	}
	if prev := p.have.Previous(spec.Name, c.Attempt); prev != nil && prev.Phase == state.Exited && prev.Known {
		s.LastTerminationState.Terminated = p.terminated(prev, old)
	} else if old != nil {
		s.LastTerminationState = p.carried(c, old)
	}
	switch {
	case c.Phase == state.Exited && c.Known:
		t := p.terminated(c, old)
		if message, waits := p.waiting(spec, c, init); waits {
			s.LastTerminationState = v1.ContainerState{Terminated: t}
			s.State.Waiting = &v1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: message}
		} else if w := p.trouble(spec); w != nil && !p.End.Begun() && again(p.pod, spec, init, c) {
			s.LastTerminationState = v1.ContainerState{Terminated: t}
			s.State.Waiting = w
		} else {
			s.State.Terminated = t
			s.Ready = init && !Sidecar(spec) && c.ExitCode == 0
		}
	case c.Phase == state.Created, c.Phase == state.Running && !p.End.Begun() && postStart(spec) && c.PostStart <= state.HookBegun:
		// A container with a postStart hook is not reported as running before the hook is through (API docs of postStart).
		s.State.Waiting = p.pending()
		if w := p.trouble(spec); w != nil {
			s.State.Waiting = w
		}
	default: // running, or ended without our knowing how
		at := second(c.StartedAt)
		if old != nil && old.ContainerID == s.ContainerID && old.State.Running != nil {
			at = old.State.Running.StartedAt
		}
		s.State.Running = &v1.ContainerStateRunning{StartedAt: at}
		s.Resources = &spec.Resources
		s.User = c.User
		if c.Phase == state.Running {
			on := started(spec, c) || init && !Sidecar(spec)
			s.Started = &on
			s.Ready = (!init || Sidecar(spec)) && ready(spec, c)
		}
	}
	return s
}

// ephemeralStatus is the status of an ephemeral container, of which nobody asks whether it serves.
func (p *planner) ephemeralStatus(spec *v1.Container) v1.ContainerStatus {
	s := p.container(spec, false)
	s.Ready, s.Started, s.AllocatedResources, s.Resources = false, nil, nil, nil
	return s
}

// unseen fills the status of a container of which the runtime has no record.
func (p *planner) unseen(spec *v1.Container, init bool, old *v1.ContainerStatus, s *v1.ContainerStatus) {
	s.State.Waiting = p.pending()
	if w := p.trouble(spec); w != nil {
		s.State.Waiting = w
	}
	if old == nil {
		return
	}
	s.RestartCount, s.LastTerminationState = old.RestartCount, old.LastTerminationState
	if old.ContainerID == "" {
		return
	}
	s.ContainerID, s.ImageID = old.ContainerID, old.ImageID
	t := old.State.Terminated
	if t == nil && old.State.Running != nil {
		// It ran when we last knew, and now nobody does: a code that never means success.
		at := second(p.now)
		t = &v1.ContainerStateTerminated{ExitCode: 137, Reason: "ContainerStatusUnknown", ContainerID: old.ContainerID,
			StartedAt: old.State.Running.StartedAt, FinishedAt: at,
			Message: "The container could not be located when the pod was deleted.  The container used to be Running"}
	}
	if t == nil {
		return
	}
	if init && !Sidecar(spec) || p.End.Begun() || !forever(p.pod, spec) {
		s.State = v1.ContainerState{Terminated: t}
		s.Ready = init && !Sidecar(spec) && t.ExitCode == 0
		return
	}
	s.LastTerminationState = v1.ContainerState{Terminated: t}
}

// carried is the last termination as reported before, for attempts whose record is gone.
func (p *planner) carried(c *state.Container, old *v1.ContainerStatus) v1.ContainerState {
	if old.ContainerID != p.id(c.ID) && old.State.Terminated != nil {
		return v1.ContainerState{Terminated: old.State.Terminated}
	}
	if old.ContainerID == p.id(c.ID) && old.LastTerminationState.Terminated != nil && old.LastTerminationState.Terminated.ContainerID == old.ContainerID {
		return v1.ContainerState{}
	}
	return old.LastTerminationState
}

// pending is why a container waits that nothing went wrong with.
func (p *planner) pending() *v1.ContainerStateWaiting {
	if len(p.pod.Spec.InitContainers) > 0 {
		return &v1.ContainerStateWaiting{Reason: "PodInitializing"}
	}
	return &v1.ContainerStateWaiting{Reason: "ContainerCreating"}
}

// trouble is the reason a container waits for because an action failed, nil if none did.
func (p *planner) trouble(spec *v1.Container) *v1.ContainerStateWaiting {
	for _, a := range [...]Action{StartContainer{Container: spec.Name}, EnsureImage{spec.Name, spec.Image}} {
		b := broken(p.have, a)
		if b == nil || b.Reason == "" {
			continue
		}
		w := &v1.ContainerStateWaiting{Reason: b.Reason, Message: b.Message}
		// The failure itself is shown first, the waiting for the next try after a moment.
		if turn := b.At.Add(showError); b.Reason == "ErrImagePull" {
			if p.now.Before(turn) {
				p.wake(turn)
			} else {
				w.Reason = "ImagePullBackOff"
				p.say("pull/"+spec.Name, fmt.Sprint(b.Count), Say{Container: spec.Name, Reason: "BackOff", Message: "Back-off pulling image \"" + spec.Image + "\""})
				w.Message = "Back-off pulling image \"" + spec.Image + "\": ErrImagePull: " + b.Message
			}
		}
		return w
	}
	return nil
}

func (p *planner) terminated(c *state.Container, old *v1.ContainerStatus) *v1.ContainerStateTerminated {
	id := p.id(c.ID)
	if old != nil { // keep the pointer if nothing can have changed: equal plans should be cheap to compare
		for _, s := range [...]*v1.ContainerState{&old.State, &old.LastTerminationState} {
			if s.Terminated != nil && s.Terminated.ContainerID == id && s.Terminated.ExitCode == c.ExitCode && s.Terminated.Message == c.Message {
				return s.Terminated
			}
		}
	}
	began := c.StartedAt
	if began.IsZero() {
		began = c.FinishedAt // no process ever ran
	}
	return &v1.ContainerStateTerminated{
		ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message, ContainerID: id,
		StartedAt: second(began), FinishedAt: second(c.FinishedAt),
	}
}

// id is a container id as the API writes it: with the runtime's name in front.
func (p *planner) id(id string) string {
	if id == "" {
		return ""
	}
	return p.want.Runtime + "://" + id
}

// mounts reports which volumes are mounted where. Source: KEP-3857, status.containerStatuses[].volumeMounts.
func mounts(spec *v1.Container, old *v1.ContainerStatus) []v1.VolumeMountStatus {
	if old != nil && len(old.VolumeMounts) == len(spec.VolumeMounts) {
		return old.VolumeMounts // they cannot change in the life of a pod
	}
	out := make([]v1.VolumeMountStatus, len(spec.VolumeMounts))
	for i := range spec.VolumeMounts {
		m := &spec.VolumeMounts[i]
		out[i] = v1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly, RecursiveReadOnly: m.RecursiveReadOnly}
		if m.ReadOnly && m.RecursiveReadOnly == nil {
			off := v1.RecursiveReadOnlyDisabled
			out[i].RecursiveReadOnly = &off
		}
	}
	return out
}
