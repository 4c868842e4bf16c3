package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/nri"
	"worknode/runtime/plan"
	"worknode/runtime/state"
	"worknode/version"
)

// openNRI makes the hub, unless it is off.
func (l *loop) openNRI() {
	o := l.opt.NRI
	if o.Off {
		return
	}
	l.nri = nri.New(nri.Options{
		Socket: o.Socket, PluginDir: o.PluginDir, ConfigDir: o.ConfigDir, Runtime: "worknode", Version: version.Build,
		RegistrationTimeout: o.RegistrationTimeout, RequestTimeout: o.RequestTimeout,
		World: l.pluginWorld, Update: l.pluginUpdate, Evict: l.pluginEvict,
	}, l.tasks)
}

// startNRI lets plugins in. A socket that cannot be had is no reason to start nothing.
func (l *loop) startNRI(ctx context.Context) {
	if l.nri == nil {
		return
	}
	if err := l.nri.Start(ctx); err != nil {
		slog.Error("NRI plugins cannot connect", "error", err)
	}
}

// pluginWorld is what a plugin that joins is told of.
func (l *loop) pluginWorld() (pods []*nri.Pod, containers []*nri.Container) {
	for _, s := range l.store.Sandboxes() {
		pods = append(pods, l.pluginPod(s)())
	}
	for _, c := range l.store.Containers("") {
		s, err := l.store.Sandbox(c.Sandbox)
		if err == nil && c.State != state.Exited {
			containers = append(containers, l.pluginContainer(s, c)())
		}
	}
	return pods, containers
}

// pluginPod and pluginContainer are messages that are made when a plugin wants them; s and c do not change any more.
func (l *loop) pluginPod(s *state.Sandbox) func() *nri.Pod {
	return func() *nri.Pod {
		linux := s.Config.GetLinux()
		out := &nri.Pod{
			ID: s.ID, Name: s.Meta().GetName(), UID: s.Meta().GetUid(), Namespace: s.Meta().GetNamespace(), Handler: s.Handler,
			Labels: s.Config.GetLabels(), Annotations: s.Config.GetAnnotations(), IPs: s.IPs, Pid: uint32(s.PausePid),
			Linux: &nri.LinuxPod{Overhead: nri.FromCRI(linux.GetOverhead()), Resources: nri.FromCRI(linux.GetResources()),
				CgroupParent: s.CgroupParent, CgroupsPath: s.CgroupParent},
		}
		if !s.NetworkDone { // else the pins are gone
			out.Linux.Namespaces = nri.FromNamespaces(l.Namespaces(s))
		}
		return out
	}
}

var pluginStates = map[state.State]int32{state.Created: nri.StateCreated, state.Running: nri.StateRunning, state.Exited: nri.StateStopped}

func (l *loop) pluginContainer(s *state.Sandbox, c *state.Container) func() *nri.Container {
	return func() *nri.Container {
		out := &nri.Container{
			ID: c.ID, Pod: s.ID, Name: c.Meta().GetName(), State: pluginStates[c.State], Labels: c.Config.GetLabels(),
			Annotations: c.Config.GetAnnotations(), Pid: uint32(c.Pid), CreatedAt: c.Created.UnixNano(), ExitCode: int32(c.ExitCode),
			Reason: c.Reason, Message: c.Message, Image: &nri.Image{Name: c.Config.GetImage().GetImage(), ConfigDigest: c.ImageID},
		}
		if !c.Started.IsZero() {
			out.StartedAt = c.Started.UnixNano()
		}
		if !c.Finished.IsZero() {
			out.FinishedAt = c.Finished.UnixNano()
		}
		for _, d := range c.Config.GetCDIDevices() {
			out.CDI = append(out.CDI, &nri.CDIDevice{Name: d.GetName()})
		}
		made, err := l.made(s, c)
		if err != nil { // an ended container whose devices or namespaces are gone
			made.Spec = &specs.Spec{Linux: &specs.Linux{CgroupsPath: c.Cgroup}}
		}
		out.Describe(made.Spec)
		if p := c.Config.GetLinux().GetSecurityContext().GetSeccomp(); p != nil {
			out.Linux.SeccompProfile = &nri.SecurityProfile{Type: int32(p.GetProfileType()), Ref: p.GetLocalhostRef()}
		}
		return out
	}
}

// adjusted lets plugins change a container that is being created. Its limits become those of the request, so that status
// shows them and later updates go on from there; the rest becomes an edit.
func (l *loop) adjusted(ctx context.Context, s *state.Sandbox, c *state.Container) error {
	before := *c
	a, err := l.nri.CreateContainer(ctx, c.ID, l.pluginPod(s), l.pluginContainer(s, &before))
	if err != nil || a == nil {
		return err
	}
	var devices []string
	for _, d := range a.CDI {
		devices = append(devices, d.Name)
	}
	if err := l.addDevices(c, devices); err != nil {
		return err
	}
	edit, err := a.Edit()
	if err != nil {
		return containerError(c.Config, fmt.Errorf("NRI: %w", err))
	}
	c.Edits = append(c.Edits, edit)
	if edit.Add.Linux.CgroupsPath != "" {
		c.Cgroup = edit.Add.Linux.CgroupsPath
	}
	if r := a.Linux.Resources; r != nil {
		c.Config = plan.WithResources(c.Config, plan.Merge(c.Config.GetLinux().GetResources(), r.CRI()))
	}
	if _, err := l.made(s, c); err != nil {
		return fmt.Errorf("NRI: %w", err)
	}
	return nil
}

// pluginStopped tells plugins of an end, without making whoever waits for the end wait for them.
func (l *loop) pluginStopped(c *state.Container) {
	if l.nri.None() {
		return
	}
	l.tasks.Go("NRI stop "+c.ID, func(ctx context.Context) {
		if s, err := l.store.Sandbox(c.Sandbox); err == nil {
			l.nri.StopContainer(ctx, c.ID, l.pluginPod(s), l.pluginContainer(s, c))
		}
	})
}

// pluginStopPod tells plugins of a pod's end, its containers' ends first.
func (l *loop) pluginStopPod(ctx context.Context, s *state.Sandbox) {
	if l.nri.None() {
		return
	}
	for _, c := range l.store.Containers(s.ID) {
		if c.State == state.Exited {
			l.nri.StopContainer(ctx, c.ID, l.pluginPod(s), l.pluginContainer(s, c))
		}
	}
	l.nri.StopPod(ctx, s.ID, l.pluginPod(s))
}

// pluginUpdate changes a container's limits because a plugin wants it. One that is unknown or has ended has none to change.
func (l *loop) pluginUpdate(_ context.Context, u *nri.Update) error {
	if u.Linux == nil {
		return nil
	}
	err := l.setLimits(u.ID, u.Linux.Resources.CRI())
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// pluginEvict stops a container at once because a plugin wants it.
func (l *loop) pluginEvict(id, reason, plugin string) {
	slog.Warn("container is evicted by an NRI plugin", "id", id, "plugin", plugin, "reason", reason)
	l.tasks.Go("evict "+id, func(ctx context.Context) {
		if err := l.StopContainer(ctx, id, 0); err != nil {
			slog.Warn("container not evicted", "id", id, "error", err)
		}
	})
}

// UpdatePodSandboxResources tells plugins of a pod's new resources: the pod's cgroup is kubelet's, and so are its limits.
// Errors: NotFound; a plugin's refusal.
func (l *loop) UpdatePodSandboxResources(ctx context.Context, r *cri.UpdatePodSandboxResourcesRequest) error {
	s, err := l.store.Sandbox(r.GetPodSandboxId())
	if err != nil {
		return err
	}
	pod := l.pluginPod(s)
	if err := l.nri.UpdatePod(ctx, pod, nri.FromCRI(r.GetOverhead()), nri.FromCRI(r.GetResources())); err != nil {
		return err
	}
	defer l.locks.take(s.ID)()
	if s, err = l.store.Sandbox(s.ID); err != nil {
		return err
	}
	v := *s
	v.Config = plan.WithPodResources(s.Config, r.GetOverhead(), r.GetResources())
	if err := l.store.PutSandbox(&v); err != nil {
		return err
	}
	l.nri.PostUpdatePod(ctx, l.pluginPod(&v))
	return nil
}

// nriSocket is where plugins connect: at the usual place for the machine's one runtime, else in the run folder.
func (o *Options) nriSocket() string {
	switch {
	case o.NRI.Socket == "-":
		return ""
	case o.NRI.Socket != "":
		return o.NRI.Socket
	case o.Run == "/run/worknode/runtime":
		return "/var/run/nri/nri.sock"
	}
	return filepath.Join(o.Run, "nri.sock")
}
