package plan

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/kubelet/state"
)

// run plans for a pod that is to live: what it stands on first (sandbox, volumes, images, all at the same time), then
// its containers.
func (p *planner) run() {
	if !p.ground() {
		return
	}
	p.ephemerals() // before all others: they may be there to find out why an init container fails
	if !p.inits() {
		return
	}
	p.mains()
}

// ground plans the sandbox, the volumes and the images, and says whether containers may start.
func (p *planner) ground() bool {
	sandbox := p.sandbox()
	volumes := p.volumes()
	p.images()
	return sandbox && volumes
}

// sandbox says whether the pod has a usable sandbox, and plans one if it has not.
func (p *planner) sandbox() bool {
	box := p.have.Sandbox
	if box.ID != "" && box.Ready {
		return true
	}
	if box.ID == "" {
		p.try(RunSandbox{p.attempt()})
		p.because("no sandbox")
		return false
	}
	// The sandbox ended under us (its runtime lost it, or the node rebooted): what still runs in it has no network.
	if !p.anythingLeft() {
		p.because("the sandbox ended and nothing is to run again")
		return false
	}
	p.say("sandbox", box.ID, Say{Reason: "SandboxChanged", Message: "Pod sandbox changed, it will be killed and re-created."})
	alive := false
	for i := range p.have.Containers {
		c := &p.have.Containers[i]
		if c.Alive() && c.Sandbox == box.ID {
			alive = true
			p.stopOne(c, p.grace(), "", true)
		}
	}
	p.because("the sandbox ended: making a new one")
	if !alive {
		if !p.have.Stopped {
			p.try(StopSandbox{box.ID})
			return false
		}
		p.try(RunSandbox{p.attempt()})
	}
	return false
}

// attempt numbers the next sandbox.
func (p *planner) attempt() uint32 {
	n := uint32(0)
	if p.have.Sandbox.ID != "" {
		n = p.have.Sandbox.Attempt + 1
	}
	for _, s := range p.have.Stale {
		n = max(n, s.Attempt+1)
	}
	return n
}

// anythingLeft says whether some container would start in a new sandbox.
func (p *planner) anythingLeft() bool {
	for i := range p.pod.Spec.Containers {
		spec := &p.pod.Spec.Containers[i]
		c := p.have.Newest(spec.Name)
		if c == nil && !p.ranBefore(spec.Name) || c != nil && c.Phase == state.Created {
			return true
		}
		if c != nil && (!c.Known && c.Phase == state.Running) {
			return forever(p.pod, spec)
		}
		if c != nil && again(p.pod, spec, false, c) {
			return true
		}
		if c == nil && forever(p.pod, spec) {
			return true
		}
	}
	return false
}

// volumes says whether all volumes are there, and plans what is missing. Files made from API objects follow their
// objects beside the running containers.
func (p *planner) volumes() bool {
	if p.have.Volumes != state.Present {
		p.try(MountVolumes{})
		p.because("mounting volumes")
		return false
	}
	if p.have.Changed {
		p.try(RefreshVolumes{})
	}
	return true
}

// images ensures the image of every container that is to start, all at once: a slow pull of one delays only that one.
func (p *planner) images() {
	for i := range p.pod.Spec.InitContainers {
		p.image(&p.pod.Spec.InitContainers[i], true)
	}
	for i := range p.pod.Spec.Containers {
		p.image(&p.pod.Spec.Containers[i], false)
	}
	for i := range p.pod.Spec.EphemeralContainers {
		if spec := ephemeral(&p.pod.Spec.EphemeralContainers[i]); p.untried(spec.Name) {
			p.image(spec, false)
		}
	}
}

// untried says that no attempt at a container is known, to the runtime or to the API.
func (p *planner) untried(name string) bool {
	return p.have.Newest(name) == nil && !p.ranBefore(name)
}

func (p *planner) image(spec *v1.Container, init bool) {
	if p.found(spec) != nil || p.have.Busy("start/"+spec.Name) {
		return
	}
	c := p.have.Newest(spec.Name)
	switch {
	case c == nil && init && !Sidecar(spec) && p.initialized():
		return
	case c != nil && c.Alive() && c.Sandbox == p.have.Sandbox.ID:
		return
	case c != nil && c.Phase == state.Exited:
		if !c.Known || !again(p.pod, spec, init, c) {
			return
		}
		if wait, _ := p.backoff(spec, c); p.now.Before(c.FinishedAt.Add(wait)) {
			return
		}
	}
	p.try(EnsureImage{spec.Name, spec.Image})
}

// found is the container's image, if it was ensured since the spec names that one.
func (p *planner) found(spec *v1.Container) *state.Image {
	if img := state.Find(p.have.Images, spec.Name); img != nil && img.Name == spec.Image {
		return img
	}
	return nil
}

// initialized says whether the pod got as far as starting its main containers in this sandbox: init containers never
// run again after that.
func (p *planner) initialized() bool {
	for i := range p.pod.Spec.Containers {
		c := p.have.Newest(p.pod.Spec.Containers[i].Name)
		if c != nil && c.Sandbox == p.have.Sandbox.ID || p.have.Busy("start/"+p.pod.Spec.Containers[i].Name) {
			return true
		}
	}
	return false
}

// inits runs the init containers in their order and says whether the main containers may run.
func (p *planner) inits() bool {
	through := p.initialized()
	for i := range p.pod.Spec.InitContainers {
		spec := &p.pod.Spec.InitContainers[i]
		c := p.current(spec.Name)
		if Sidecar(spec) {
			p.keep(spec, c, true)
			if !through && !(c != nil && started(spec, c)) {
				p.because("waiting for sidecar " + spec.Name)
				return false
			}
			continue
		}
		if through {
			continue
		}
		if c != nil && c.Phase == state.Exited && c.Known && c.ExitCode == 0 {
			continue
		}
		if c == nil || !c.Alive() {
			p.keep(spec, c, true)
		} else if c.Phase == state.Created {
			p.start(spec, c, 0)
		}
		p.because("waiting for init container " + spec.Name)
		return false
	}
	return true
}

// current is the newest attempt of a container in the present sandbox, nil if it did not run there yet.
func (p *planner) current(name string) *state.Container {
	c := p.have.Newest(name)
	if c == nil || c.Sandbox != p.have.Sandbox.ID {
		return nil
	}
	return c
}

// mains runs the pod's containers. They start at the same time, except that a postStart hook holds up those after it:
// upstream starts them one by one, and people order containers by hooks.
func (p *planner) mains() {
	for i := range p.pod.Spec.Containers {
		spec := &p.pod.Spec.Containers[i]
		c := p.current(spec.Name)
		p.keep(spec, c, false)
		if postStart(spec) && (c == nil || c.Phase == state.Created || c.Phase == state.Running && c.PostStart <= state.HookBegun) {
			p.because("waiting for the postStart hook of " + spec.Name)
			return
		}
	}
	p.because("running")
}

// ephemerals starts the ephemeral containers that people have added to look at the pod. One that names a target enters its
// process namespace, and so waits for it to run. They end with the pod, which does not wait for them and takes no notice of
// how they do.
func (p *planner) ephemerals() {
	for i := range p.pod.Spec.EphemeralContainers {
		e := &p.pod.Spec.EphemeralContainers[i]
		spec, c := ephemeral(e), p.current(e.Name)
		switch {
		case c != nil && c.Phase == state.Created:
			p.start(spec, c, 0)
		case !p.untried(e.Name):
		case e.TargetContainerName == "":
			p.start(spec, nil, 0)
		default:
			if target := p.current(e.TargetContainerName); target != nil && target.Phase == state.Running {
				p.start(spec, nil, 0)
			}
		}
	}
}

// keep does for one container what its state asks for: start, hook, probe, restart or stop. c is nil if it did not run
// in this sandbox.
func (p *planner) keep(spec *v1.Container, c *state.Container, init bool) {
	switch {
	case c == nil:
		last := p.have.Newest(spec.Name) // of an older sandbox
		if last != nil && last.Alive() {
			p.stopOne(last, p.grace(), "", true) // cannot serve without its sandbox
			return
		}
		if last == nil && p.vanished(spec) && !forever(p.pod, spec) {
			return // it ran and nobody knows how it ended: reported as failed, never run twice
		}
		if last != nil && !p.due(spec, last, init) {
			return
		}
		p.start(spec, nil, p.nextBackoff(spec, last))
	case c.Phase == state.Created:
		p.start(spec, c, 0)
	case c.Phase == state.Exited:
		if c.Known && p.due(spec, c, init) {
			p.start(spec, nil, p.nextBackoff(spec, c))
		}
	case c.Phase == state.Running:
		p.tend(spec, c, init)
	}
}

// tend looks after a running attempt: its definition, its hook, its probes.
func (p *planner) tend(spec *v1.Container, c *state.Container, init bool) {
	if !c.StopSince.IsZero() {
		p.stopOne(c, p.graceAfter(spec, c), "", c.Again)
		return
	}
	if (!init || Sidecar(spec)) && changed(spec, c) {
		p.stopOne(c, p.grace(), "Container "+spec.Name+" definition changed, will be restarted", true)
		return
	}
	if postStart(spec) {
		switch c.PostStart {
		case state.HookNone:
			p.try(RunHook{Container: spec.Name, ID: c.ID, Hook: PostStart})
			return
		case state.HookBegun:
			return
		case state.HookFailed:
			p.stopOne(c, p.grace(), "FailedPostStartHook", false)
			return
		}
	}
	if !init || Sidecar(spec) {
		p.probes(spec, c)
	}
}

// start plans the start of an attempt: of the given one if the runtime has it already, else of the next.
func (p *planner) start(spec *v1.Container, c *state.Container, backoff time.Duration) {
	img := p.found(spec)
	a := StartContainer{Container: spec.Name, Sandbox: p.have.Sandbox, Backoff: backoff}
	if c != nil {
		a.ID, a.Attempt, a.Backoff = c.ID, c.Attempt, c.Backoff
		p.try(a)
		return
	}
	if img == nil {
		p.because("no image for " + spec.Name)
		return
	}
	a.Image, a.Attempt = *img, p.nextAttempt(spec.Name)
	a.Target = p.target(spec.Name)
	p.try(a)
}

// target is the id of the container whose processes an ephemeral container is to see; empty for all others.
func (p *planner) target(name string) string {
	for i := range p.pod.Spec.EphemeralContainers {
		if e := &p.pod.Spec.EphemeralContainers[i]; e.Name == name && e.TargetContainerName != "" {
			if c := p.current(e.TargetContainerName); c != nil {
				return c.ID
			}
		}
	}
	return ""
}

// nextAttempt numbers the next attempt of a container. The API's status remembers what the runtime lost in a reboot.
func (p *planner) nextAttempt(name string) int {
	next := 0
	if c := p.have.Newest(name); c != nil {
		next = c.Attempt + 1
	}
	if s := p.reported(name); s != nil && (s.ContainerID != "" || s.LastTerminationState.Terminated != nil) {
		if last := p.have.Newest(name); last == nil || int(s.RestartCount) > last.Attempt {
			next = max(next, int(s.RestartCount)+1)
		}
	}
	return next
}

// reported is what the status said about a container before this plan, nil for nothing.
func (p *planner) reported(name string) *v1.ContainerStatus { return find(&p.have.Status, name) }

func find(s *v1.PodStatus, name string) *v1.ContainerStatus {
	for i := range s.ContainerStatuses {
		if s.ContainerStatuses[i].Name == name {
			return &s.ContainerStatuses[i]
		}
	}
	for i := range s.InitContainerStatuses {
		if s.InitContainerStatuses[i].Name == name {
			return &s.InitContainerStatuses[i]
		}
	}
	for i := range s.EphemeralContainerStatuses {
		if s.EphemeralContainerStatuses[i].Name == name {
			return &s.EphemeralContainerStatuses[i]
		}
	}
	return nil
}

// ranBefore says whether the API's status tells of an attempt, which the runtime may have lost.
func (p *planner) ranBefore(name string) bool {
	s := p.reported(name)
	return s != nil && s.ContainerID != ""
}

// vanished says that a container ran, by the API's status, and the runtime knows nothing of it.
func (p *planner) vanished(spec *v1.Container) bool {
	return p.have.Newest(spec.Name) == nil && p.ranBefore(spec.Name)
}

// changed says whether a container was made from another image than the pod asks for now; nothing else of a container's
// definition may change in a living pod. One made by another kubelet does not tell, and is left alone.
func changed(spec *v1.Container, c *state.Container) bool {
	return c.Image != "" && c.Image != spec.Image
}
