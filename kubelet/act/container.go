package act

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/kubelet/object"
	"worknode/kubelet/plan"
	"worknode/kubelet/state"
	"worknode/kubelet/translate"
)

// Annotations by which a container tells a restarted kubelet what only the one that made it knew.
const (
	noteBackoff     = "worknode.io/restart-backoff"  // seconds that the next attempt has to wait
	noteImage       = "worknode.io/image"            // as the pod named it
	noteTermination = "worknode.io/termination-file" // path on the host of the termination message
)

// startContainer creates an attempt, unless the runtime has it already, and starts it.
func (a *Act) startContainer(ctx context.Context, pod *v1.Pod, t plan.StartContainer) plan.Result {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c := state.Container{
		Name: t.Container, ID: t.ID, Sandbox: t.Sandbox.ID, Attempt: t.Attempt, Backoff: t.Backoff,
		Image: t.Image.Name, ImageRef: t.Image.Ref, CreatedAt: time.Now(),
	}
	if t.ID == "" {
		made, err := a.createContainer(ctx, pod, t)
		if err != nil {
			return *err
		}
		c.ID = made
	}
	if _, err := a.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ID}); err != nil {
		r := refused(err, "RunContainerError")
		if r.Lost {
			return r
		}
		// What the runtime recorded of the failure (exit code, time) becomes the attempt's end.
		if seen, e := a.container(ctx, c.ID); e == nil {
			c = seen
		}
		r.Container = &c
		return r
	}
	c.Phase, c.StartedAt = state.Running, time.Now()
	a.link(pod, c.Name, c.ID, c.Attempt)
	// The record tells the time and the user as every later look will, so that no later look changes the status.
	if seen, err := a.container(ctx, c.ID); err == nil && seen.Phase != state.Created {
		seen.Sandbox, seen.Image = c.Sandbox, cmp.Or(seen.Image, c.Image)
		if c.ImageRef != "" {
			seen.ImageRef = c.ImageRef
		}
		c = seen
	}
	return plan.Result{Container: &c}
}

// createContainer makes the record of an attempt and returns its id, or the result that says why not.
func (a *Act) createContainer(ctx context.Context, pod *v1.Pod, t plan.StartContainer) (string, *plan.Result) {
	no := func(err error, reason string) (string, *plan.Result) {
		r := wrong(err, reason)
		return "", &r
	}
	spec, _ := plan.Lookup(pod, t.Container)
	if spec == nil {
		return no(fault.New(fault.Invalid, "pod %s has no container %s", pod.Name, t.Container), "CreateContainerConfigError")
	}
	node := a.Node()
	config, err := a.config(ctx, pod, spec, node, t)
	if err != nil {
		return no(err, "CreateContainerConfigError")
	}
	box, err := translate.Sandbox(pod, node, t.Sandbox.Attempt, a.Cgroups.Parent(pod))
	if err != nil {
		return no(err, "CreateContainerConfigError")
	}
	made, err := a.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: t.Sandbox.ID, Config: config, SandboxConfig: box})
	if err != nil {
		r := refused(err, "CreateContainerError")
		if r.Kind == fault.Exists {
			r.Lost = true // an attempt of that name is there: a reply was lost earlier
		}
		return "", &r
	}
	return made.ContainerId, nil
}

// config prepares the files of an attempt and translates it.
func (a *Act) config(ctx context.Context, pod *v1.Pod, spec *v1.Container, node translate.Node, t plan.StartContainer) (*cri.ContainerConfig, error) {
	// A static pod may be the API server that would tell of the Services.
	if a.Static == nil || !a.Static(pod) {
		if err := a.Objects.WaitServices(ctx); err != nil {
			return nil, err
		}
	}
	in := translate.ContainerInput{
		Pod: pod, Container: spec, RestartCount: t.Attempt, PodIPs: t.Sandbox.IPs, Node: node,
		TargetID: t.Target,
		Image:    translate.ImageFacts{ID: t.Image.ID, User: t.Image.User, UID: t.Image.UID},
		Volumes:  a.Volumes.Paths(pod), Objects: a.Objects.With(ctx),
		Services: append(a.Objects.Services(pod.Namespace), kubernetesService(a.Objects, pod.Namespace)...),
	}
	if pod.Spec.HostNetwork {
		in.PodIPs = node.IPs
	}
	files, err := a.Volumes.PrepareFiles(pod, spec, t.Attempt, in.PodIPs)
	if err != nil {
		return nil, err
	}
	in.HostsFile, in.TerminationFile = files.Hosts, files.Termination
	for i := range spec.VolumeMounts {
		m := &spec.VolumeMounts[i]
		if m.SubPath == "" && m.SubPathExpr == "" {
			continue
		}
		sub, err := translate.SubPath(in, i)
		if err != nil {
			return nil, err
		}
		path, err := a.Volumes.SubPath(pod, spec, i, sub)
		if err != nil {
			return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", m.Name, spec.Name, err)
		}
		if in.SubPaths == nil {
			in.SubPaths = map[int]string{}
		}
		in.SubPaths[i] = path
	}
	config, err := translate.Container(in)
	if err != nil {
		return nil, err
	}
	if config.Annotations == nil {
		config.Annotations = map[string]string{}
	}
	config.Annotations[noteBackoff] = strconv.Itoa(int(t.Backoff / time.Second))
	config.Annotations[noteImage] = spec.Image
	config.Annotations[noteTermination] = in.TerminationFile
	return config, nil
}

// kubernetesService is the API server's Service, which every pod gets in its environment.
func kubernetesService(o *object.Cache, ns string) []*v1.Service {
	if ns == v1.NamespaceDefault {
		return nil
	}
	var out []*v1.Service
	for _, s := range o.Services(v1.NamespaceDefault) {
		if s.Name == "kubernetes" {
			out = append(out, s)
		}
	}
	return out
}

// stopContainer asks the runtime to end an attempt and reads how it ended.
func (a *Act) stopContainer(ctx context.Context, t plan.StopContainer) plan.Result {
	ctx, cancel := context.WithTimeout(ctx, t.Grace+callTime)
	defer cancel()
	_, err := a.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: t.ID, Timeout: int64((t.Grace + time.Second - 1) / time.Second)})
	if err != nil {
		return refused(err, "KillContainerError")
	}
	r := a.inspect(ctx, t.ID)
	if r.Failed.Reason != "" {
		return plan.Result{} // it is stopped; how it ended is read again
	}
	return r
}

func (a *Act) removeContainer(ctx context.Context, pod *v1.Pod, t plan.RemoveContainer) plan.Result {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, err := a.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: t.ID}); err != nil {
		return refused(err, "FailedRemoveContainer")
	}
	return wrong(a.removeLog(pod, t.Container, t.ID, t.Attempt), "FailedRemoveLogs")
}
