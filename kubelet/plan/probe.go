package plan

import (
	v1 "k8s.io/api/core/v1"

	"worknode/kubelet/state"
)

// probes plans the probes of a running attempt and acts on their verdicts. Until the startup probe succeeded the others
// do not run. Source: API docs of Container.startupProbe.
func (p *planner) probes(spec *v1.Container, c *state.Container) {
	if spec.StartupProbe != nil && c.Probe.Startup != state.Success {
		if c.Probe.Startup == state.Failure {
			p.unwell(spec, c, "startup")
			return
		}
		if !c.Probe.StartupOn {
			p.setProbe(c, Startup, state.Unknown)
		}
		return
	}
	p.drop(c, Startup, c.Probe.StartupOn)
	if spec.LivenessProbe != nil {
		if c.Probe.Liveness == state.Failure {
			p.unwell(spec, c, "liveness")
			return
		}
		if !c.Probe.AliveOn {
			p.setProbe(c, Liveness, state.Success)
		}
	}
	if spec.ReadinessProbe != nil && !c.Probe.ReadinessOn {
		p.setProbe(c, Readiness, c.Probe.Readiness)
	}
}

func (p *planner) setProbe(c *state.Container, kind Kind, initial state.Verdict) {
	p.Do = append(p.Do, SetProbe{Container: c.Name, ID: c.ID, Kind: kind, StartedAt: c.StartedAt, Initial: initial})
}

// unwell stops an attempt that failed its startup or liveness probe. It starts anew unless its policy is Never, whatever
// its exit code will be.
func (p *planner) unwell(spec *v1.Container, c *state.Container, probe string) {
	again, then := forever(p.pod, spec), "will be restarted"
	if !again {
		then = "will be killed"
	}
	p.stopOne(c, p.graceAfter(spec, c), "Container "+spec.Name+" failed "+probe+" probe, "+then, again)
}

// silence ends the probes of attempts that ended. It comes before anything that could start the next attempt, whose
// probes go by the same names.
func (p *planner) silence() {
	for i := range p.have.Containers {
		c := &p.have.Containers[i]
		if c.Phase != state.Exited {
			continue
		}
		p.drop(c, Startup, c.Probe.StartupOn)
		p.drop(c, Readiness, c.Probe.ReadinessOn)
		p.drop(c, Liveness, c.Probe.AliveOn)
	}
}

func (p *planner) drop(c *state.Container, kind Kind, on bool) {
	if on {
		p.Do = append(p.Do, DropProbe{c.Name, c.ID, kind})
	}
}
