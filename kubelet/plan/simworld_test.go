package plan

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"

	"worknode/fault"
	"worknode/kubelet/state"
)

// apply is the model's runtime, kubelet files and API server: the effect of an action, and the reply.
func (w *sim) apply(a Action) Result {
	switch t := a.(type) {
	case RunSandbox:
		w.cgroup = true
		w.nextID++
		box := state.Sandbox{ID: fmt.Sprint("s", w.nextID), Attempt: t.Attempt, Ready: true, IPs: []string{"10.0.0.1"}, CreatedAt: w.now}
		w.sandboxes = append(w.sandboxes, box)
		return Result{Sandbox: &box}
	case StopSandbox:
		for i := range w.sandboxes {
			if w.sandboxes[i].ID == t.ID {
				w.sandboxes[i].Ready = false
			}
		}
		for i := range w.containers {
			if c := &w.containers[i]; c.Sandbox == t.ID && c.Phase == state.Running {
				w.exits(c, 137)
			}
		}
	case RemoveSandbox:
		w.sandboxes = slices.DeleteFunc(w.sandboxes, func(s state.Sandbox) bool { return s.ID == t.ID })
		w.containers = slices.DeleteFunc(w.containers, func(c simContainer) bool { return c.Sandbox == t.ID })
	case MountVolumes:
		w.volumes = true
	case UnmountVolumes:
		if w.anyRunning() {
			w.fail("volumes are unmounted under a running container")
		}
		w.volumes, w.end = false, state.End{}
	case RemoveCgroup:
		if w.anyRunning() {
			w.fail("the cgroup is removed under a running container")
		}
		w.cgroup = false
	case EnsureImage:
		return Result{Image: &state.Image{Name: "i", ID: "sha"}}
	case StartContainer:
		return w.startContainer(t)
	case StopContainer:
		return w.stopContainer(t)
	case Inspect:
		return w.inspect(t.ID)
	case RemoveContainer:
		w.containers = slices.DeleteFunc(w.containers, func(c simContainer) bool { return c.ID == t.ID })
	case Look:
		world := w.world()
		return Result{World: &world}
	case DeleteObject:
		if w.anyRunning() || w.volumes || w.cgroup || len(w.sandboxes)+len(w.containers) > 0 {
			w.fail("the API object is deleted while the node still holds something of the pod")
		}
		w.exists, w.pending = false, nil
		if w.chance(50) {
			w.want.Gone = true
		}
	}
	return Result{}
}

func (w *sim) startContainer(t StartContainer) Result {
	i := slices.IndexFunc(w.sandboxes, func(s state.Sandbox) bool { return s.ID == t.Sandbox.ID && s.Ready })
	if i < 0 {
		return Result{Failed: state.Cause{Reason: "CreateContainerError", Message: "sandbox not ready"}, Kind: fault.Temporary}
	}
	i = slices.IndexFunc(w.containers, func(c simContainer) bool { return c.ID == t.ID })
	if t.ID == "" {
		for _, c := range w.containers {
			if c.Name == t.Container && c.Attempt == t.Attempt {
				w.fail("attempt %d of %s is created twice", t.Attempt, t.Container)
			}
		}
		w.nextID++
		w.containers = append(w.containers, simContainer{Container: state.Container{
			Name: t.Container, ID: fmt.Sprint("c", w.nextID), Sandbox: t.Sandbox.ID, Attempt: t.Attempt, Backoff: t.Backoff,
			Image: "i", CreatedAt: w.now,
		}})
		i = len(w.containers) - 1
		if !w.calm && w.chance(10) {
			return Result{Lost: true, Failed: state.Cause{Reason: "x", Message: "lost between create and start"}}
		}
	}
	if i < 0 {
		return Result{Failed: state.Cause{Reason: "RunContainerError", Message: "no such container"}, Kind: fault.NotFound}
	}
	c := &w.containers[i]
	if c.Phase != state.Created {
		return Result{Failed: state.Cause{Reason: "RunContainerError", Message: "not in state created"}, Kind: fault.Busy, Lost: true}
	}
	w.checkStart(c)
	c.starts++
	w.starts++
	c.Phase, c.StartedAt = state.Running, w.now
	w.note("%s (%s attempt %d) starts", c.ID, c.Name, c.Attempt)
	if !w.calm && w.chance(10) {
		c.Phase, c.ExitCode, c.FinishedAt, c.Reason = state.Exited, 128, w.now, "StartError"
		w.remember(c)
		out := c.Container
		out.Known = true
		return Result{Container: &out, Failed: state.Cause{Reason: "RunContainerError", Message: "no such file"}}
	}
	out := c.Container
	return Result{Container: &out}
}

func (w *sim) stopContainer(t StopContainer) Result {
	i := slices.IndexFunc(w.containers, func(c simContainer) bool { return c.ID == t.ID })
	if i < 0 {
		return Result{Failed: state.Cause{Reason: "KillContainerError", Message: "no such container"}, Kind: fault.NotFound}
	}
	c := &w.containers[i]
	switch c.Phase {
	case state.Running:
		w.exits(c, int32([]int{0, 137, 143}[w.r.IntN(3)]))
	case state.Created:
		w.exits(c, 0)
	}
	return w.inspect(t.ID)
}

func (w *sim) inspect(id string) Result {
	for _, c := range w.containers {
		if c.ID == id {
			one := c.Container
			one.Known = one.Phase == state.Exited
			return Result{Container: &one}
		}
	}
	return Result{}
}

// checkStart holds at every start of a container.
func (w *sim) checkStart(c *simContainer) {
	if c.starts > 0 {
		w.fail("%s is started twice", c.ID)
	}
	for i := range w.containers {
		if o := &w.containers[i]; o.Name == c.Name && o.ID != c.ID && o.Phase == state.Running {
			w.fail("%s starts while %s of the same name runs", c.ID, o.ID)
		}
	}
	if !w.exists && !w.want.Gone {
		w.fail("%s starts in a pod that was deleted", c.ID)
	}
	spec, init := Lookup(w.pod, c.Name)
	for i := range w.pod.Spec.InitContainers {
		before := &w.pod.Spec.InitContainers[i]
		if init && before.Name == spec.Name {
			return
		}
		last := w.newest(before.Name)
		switch {
		case Sidecar(before):
			// It was started before; it may have ended since.
			if !slices.ContainsFunc(w.containers, func(o simContainer) bool { return o.Name == before.Name && o.starts > 0 }) {
				w.fail("%s starts before sidecar %s", c.Name, before.Name)
			}
		case last == nil || last.Phase != state.Exited || last.ExitCode != 0:
			w.fail("%s starts before init container %s is through", c.Name, before.Name)
		}
	}
}

func (w *sim) newest(name string) *simContainer {
	var out *simContainer
	for i := range w.containers {
		if c := &w.containers[i]; c.Name == name && (out == nil || c.Attempt > out.Attempt) {
			out = c
		}
	}
	return out
}

// checkStatus holds for every status the planner computes.
func (w *sim) checkStatus(s *v1.PodStatus) {
	if w.want.Orphan {
		return
	}
	for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for _, c := range list {
			set := 0
			for _, is := range []bool{c.State.Waiting != nil, c.State.Running != nil, c.State.Terminated != nil} {
				if is {
					set++
				}
			}
			if set != 1 {
				w.fail("container %s has %d states", c.Name, set)
			}
			if c.RestartCount < w.published(c.Name) {
				w.fail("restartCount of %s went from %d to %d", c.Name, w.published(c.Name), c.RestartCount)
			}
		}
	}
	before := w.status.Phase
	if terminal(before) && s.Phase != before || before == v1.PodRunning && s.Phase == v1.PodPending {
		w.fail("phase went from %s to %s", before, s.Phase)
	}
}

// published is the restart count that the API server has.
func (w *sim) published(name string) int32 {
	if c := find(&w.status, name); c != nil {
		return c.RestartCount
	}
	return 0
}

// checkOver holds when the kubelet forgets the pod.
func (w *sim) checkOver() {
	if len(w.containers) > 0 || len(w.sandboxes) > 0 || w.volumes || w.cgroup {
		w.fail("forgotten with %d containers, %d sandboxes, volumes=%v, cgroup=%v left", len(w.containers), len(w.sandboxes), w.volumes, w.cgroup)
	}
	if w.exists {
		w.fail("forgotten while the API object exists")
	}
}
