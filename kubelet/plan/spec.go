package plan

import (
	v1 "k8s.io/api/core/v1"

	"worknode/kubelet/state"
)

// Sidecar says that an init container runs beside the pod's containers instead of before them.
// Source: KEP-753, initContainers[].restartPolicy.
func Sidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

// Lookup finds a container of the pod by name and says whether it is an init container; nil if there is none.
func Lookup(pod *v1.Pod, name string) (c *v1.Container, init bool) {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return &pod.Spec.Containers[i], false
		}
	}
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return &pod.Spec.InitContainers[i], true
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return ephemeral(&pod.Spec.EphemeralContainers[i]), false
		}
	}
	return nil, false
}

// ephemeral is an ephemeral container as a container: one that is never run twice. It has no probes and no hooks.
// Source: KEP-277; API docs of EphemeralContainer.
func ephemeral(e *v1.EphemeralContainer) *v1.Container {
	c := v1.Container(e.EphemeralContainerCommon)
	never := v1.ContainerRestartPolicyNever
	c.RestartPolicy = &never
	return &c
}

func postStart(c *v1.Container) bool { return c.Lifecycle != nil && c.Lifecycle.PostStart != nil }
func preStop(c *v1.Container) bool   { return c.Lifecycle != nil && c.Lifecycle.PreStop != nil }

// started says whether an attempt counts as started: it runs, its postStart hook is through and so is its startup probe.
func started(spec *v1.Container, c *state.Container) bool {
	return hooked(spec, c) && (spec.StartupProbe == nil || c.Probe.Startup == state.Success)
}

// hooked says whether an attempt runs and its postStart hook, if it has one, succeeded.
func hooked(spec *v1.Container, c *state.Container) bool {
	return c != nil && c.Phase == state.Running && (!postStart(spec) || c.PostStart == state.HookDone)
}

// ready says whether an attempt counts as ready to serve.
func ready(spec *v1.Container, c *state.Container) bool {
	return started(spec, c) && (spec.ReadinessProbe == nil || c.Probe.Readiness == state.Success)
}

// again says whether the restart policies let an ended attempt run anew. A container's own rules beat its own policy,
// which beats the pod's. Source: API PodSpec.restartPolicy, Container.restartPolicy and restartPolicyRules (KEP-5307).
func again(pod *v1.Pod, spec *v1.Container, init bool, c *state.Container) bool {
	if c.Again {
		return true
	}
	for _, rule := range spec.RestartPolicyRules {
		if rule.Action == v1.ContainerRestartRuleActionRestart && rule.ExitCodes != nil && matches(rule.ExitCodes, c.ExitCode) {
			return true
		}
	}
	policy := pod.Spec.RestartPolicy
	if spec.RestartPolicy != nil {
		policy = v1.RestartPolicy(*spec.RestartPolicy)
	}
	switch policy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return c.ExitCode != 0
	}
	if init && !Sidecar(spec) {
		return c.ExitCode != 0
	}
	return true
}

// forever says whether a container that was stopped for a failed probe may start again at all.
func forever(pod *v1.Pod, spec *v1.Container) bool {
	policy := pod.Spec.RestartPolicy
	if spec.RestartPolicy != nil {
		policy = v1.RestartPolicy(*spec.RestartPolicy)
	}
	return policy != v1.RestartPolicyNever
}

func matches(rule *v1.ContainerRestartRuleOnExitCodes, code int32) bool {
	in := false
	for _, v := range rule.Values {
		in = in || v == code
	}
	return in == (rule.Operator == v1.ContainerRestartRuleOnExitCodesOpIn)
}
