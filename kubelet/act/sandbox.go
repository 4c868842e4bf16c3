package act

import (
	"context"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kubelet/plan"
	"worknode/kubelet/state"
	"worknode/kubelet/translate"
)

// runSandbox makes the pod's cgroup, then its sandbox, and reads the addresses the network gave it.
func (a *Act) runSandbox(ctx context.Context, pod *v1.Pod, t plan.RunSandbox) plan.Result {
	ctx, cancel := context.WithTimeout(ctx, 2*callTime) // networks may be slow
	defer cancel()
	parent, err := a.Cgroups.Ensure(pod)
	if err != nil {
		return wrong(err, "CreatePodSandboxError")
	}
	config, err := translate.Sandbox(pod, a.Node(), t.Attempt, parent)
	if err != nil {
		return wrong(err, "ConfigPodSandboxError")
	}
	handler := ""
	if pod.Spec.RuntimeClassName != nil {
		handler = *pod.Spec.RuntimeClassName
	}
	made, err := a.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return refused(err, "CreatePodSandboxError")
	}
	box, err := a.sandbox(ctx, made.PodSandboxId)
	if err != nil {
		r := refused(err, "CreatePodSandboxError")
		r.Lost = true // it exists: the next look finds it
		return r
	}
	return plan.Result{Sandbox: &box}
}

// sandbox reads one sandbox's state and addresses.
func (a *Act) sandbox(ctx context.Context, id string) (state.Sandbox, error) {
	r, err := a.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		return state.Sandbox{}, err
	}
	s := r.Status
	box := state.Sandbox{
		ID: id, Attempt: s.GetMetadata().GetAttempt(), Ready: s.State == cri.PodSandboxState_SANDBOX_READY, CreatedAt: nanos(s.CreatedAt),
	}
	if ip := s.GetNetwork().GetIp(); ip != "" {
		box.IPs = append(box.IPs, ip)
	}
	for _, ip := range s.GetNetwork().GetAdditionalIps() {
		box.IPs = append(box.IPs, ip.Ip)
	}
	return box, nil
}

func (a *Act) stopSandbox(ctx context.Context, t plan.StopSandbox) plan.Result {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	_, err := a.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: t.ID})
	return refused(err, "KillPodSandboxError")
}

func (a *Act) removeSandbox(ctx context.Context, pod *v1.Pod, t plan.RemoveSandbox) plan.Result {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if t.Logs { // first: after a crash only the sandbox leads back to them
		if err := a.removeLogs(pod); err != nil {
			return wrong(err, "FailedRemoveLogs")
		}
	}
	_, err := a.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: t.ID})
	return refused(err, "KillPodSandboxError")
}
