package plan

import (
	"worknode/kubelet/state"
)

// clean takes down what the containers stood on. A pod that finished by itself keeps its containers' records, so that
// its logs can be read; one that was deleted leaves nothing.
func (p *planner) clean() {
	for i := range p.have.Running {
		if key := p.have.Running[i].Key; key == "sandbox" || key == "volumes" || key == "refresh" || hasPrefix(key, "start/") {
			p.because("waiting for " + key + " before cleaning up")
			return // it would make anew what we are about to remove
		}
	}
	if p.have.Probed {
		p.Do = append(p.Do, DropProbes{})
	}
	stopped := p.stopSandboxes()
	if p.have.Volumes != state.None {
		p.try(UnmountVolumes{})
		p.because("removing volumes")
	}
	if stopped && p.have.Cgroup != state.None {
		p.try(RemoveCgroup{})
		p.because("removing the cgroup")
	}
	if !p.leaves() {
		p.because("ended; its records stay until the pod is deleted")
		return
	}
	// Until the API server has the final status, the runtime's records are the only memory of how containers ended.
	if stopped && (p.want.Gone || p.want.Orphan || terminal(p.have.Written)) {
		p.removeSandboxes()
	}
	p.deleteObject()
}

// leaves says whether the pod is to go altogether, records and object.
func (p *planner) leaves() bool {
	return p.want.Gone || p.want.Orphan || p.pod.DeletionTimestamp != nil
}

func (p *planner) stopSandboxes() (stopped bool) {
	stopped = true
	if box := p.have.Sandbox; box.ID != "" && !p.have.Stopped {
		p.try(StopSandbox{box.ID})
		p.because("stopping the sandbox")
		stopped = false
	}
	for _, s := range p.have.Stale {
		if s.Ready {
			p.try(StopSandbox{s.ID})
			stopped = false
		}
	}
	return stopped
}

func (p *planner) removeSandboxes() {
	if p.have.Sandbox.ID != "" {
		p.try(RemoveSandbox{p.have.Sandbox.ID, true})
	}
	for _, s := range p.have.Stale {
		p.try(RemoveSandbox{s.ID, true})
	}
	for i := range p.have.Containers {
		c := &p.have.Containers[i]
		if !p.hasSandbox(c.Sandbox) {
			p.try(RemoveContainer{c.Name, c.ID, c.Attempt})
		}
	}
}

func (p *planner) hasSandbox(id string) bool {
	if id == p.have.Sandbox.ID {
		return true
	}
	for _, s := range p.have.Stale {
		if s.ID == id {
			return true
		}
	}
	return false
}

// deleteObject removes the API object once the server has the terminal status and the node has nothing left of the pod:
// whoever sees the object go may rely on that. Source: graceful deletion, API docs of metadata.deletionTimestamp.
func (p *planner) deleteObject() {
	if p.want.Gone || p.want.Orphan || p.have.Deleted {
		p.because("removing what is left")
		return
	}
	if p.have.Volumes == state.None && p.have.Cgroup == state.None && p.have.Sandbox.ID == "" && len(p.have.Stale) == 0 &&
		len(p.have.Containers) == 0 && terminal(p.have.Written) {
		p.try(DeleteObject{})
		p.because("deleting the API object")
		return
	}
	p.because("waiting until nothing is left and the API server has the final status")
}

// over says whether the pod can be forgotten.
func (p *planner) over() {
	h := p.have
	left := h.Sandbox.ID != "" || len(h.Stale) > 0 || len(h.Containers) > 0 || h.Volumes != state.None ||
		h.Cgroup != state.None || len(h.Running) > 0
	p.Over = !left && (p.want.Gone || p.want.Orphan || h.Deleted)
}
