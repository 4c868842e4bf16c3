package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/act"
	"worknode/runtime/nri"
	"worknode/runtime/plan"
	"worknode/runtime/state"
	"worknode/step"
)

// startError is the exit code of a container that never had a process, as other CRI runtimes report it.
const startError = 128

// CreateContainer records a container and prepares its writable layer; no process, no mount yet.
// Repeat: the same sandbox, name and attempt find the container made before.
// Errors: NotFound for sandbox or image; Invalid, Unsupported for the request.
func (l *loop) CreateContainer(ctx context.Context, sandbox string, config *cri.ContainerConfig) (string, error) {
	s, err := l.store.Sandbox(sandbox)
	if err != nil {
		return "", err
	}
	return l.join(ctx, "container\x00"+state.ContainerName(s.ID, config), func(ctx context.Context) (string, error) {
		defer l.locks.take(s.ID)()
		return l.createContainer(ctx, s.ID, config)
	})
}

func (l *loop) createContainer(ctx context.Context, sandbox string, config *cri.ContainerConfig) (string, error) {
	s, err := l.store.Sandbox(sandbox)
	if err != nil {
		return "", err
	}
	if s.State != state.Ready {
		return "", fault.New(fault.Invalid, "sandbox %s is stopped, no container can be made in it", s.ID)
	}
	for _, c := range l.store.Containers(s.ID) {
		if c.Name() == state.ContainerName(s.ID, config) {
			return c.ID, nil
		}
	}
	c, err := l.draft(s, config)
	if err != nil {
		return "", err
	}
	if err := l.adjusted(ctx, s, c); err != nil {
		l.nri.Unmade(l.tasks.Context(), c.ID)
		return "", err
	}
	l.useImages(c)
	if err := l.place(c); err != nil {
		l.nri.Unmade(l.tasks.Context(), c.ID)
		l.releaseImages(c)
		return "", errors.Join(err, l.hands.RemoveLayer(c.ID))
	}
	l.born(c.ID)
	l.nri.Made(c.ID)
	l.nri.PostCreate(ctx, l.pluginPod(s), l.pluginContainer(s, c))
	l.tell(c, cri.ContainerEventType_CONTAINER_CREATED_EVENT)
	return c.ID, nil
}

// draft resolves all that the request names and proves that a plan can be made of it.
func (l *loop) draft(s *state.Sandbox, config *cri.ContainerConfig) (*state.Container, error) {
	if err := plan.Check(config); err != nil {
		return nil, err
	}
	ref := config.GetImage().GetImage()
	im, ok := l.images.Get(ref)
	if !ok {
		return nil, fault.Hint(fault.New(fault.NotFound, "container %s: image %q is not on this node", config.GetMetadata().GetName(), ref), "import it first")
	}
	id := newID()
	c := &state.Container{
		ID: id, Sandbox: s.ID, State: state.Created, Config: config, Created: time.Now(),
		ImageID: im.ID, Layers: im.Layers, Cgroup: path.Join(s.CgroupParent, id),
		Image: ocispec.ImageConfig{Env: im.Config.Env, Entrypoint: im.Config.Entrypoint, Cmd: im.Config.Cmd, WorkingDir: im.Config.WorkingDir, StopSignal: im.Config.StopSignal},
	}
	var err error
	if c.StopSignal, err = plan.StopSignal(config, im.Config.StopSignal); err != nil {
		return nil, err
	}
	if c.User, err = act.User(l.images.Base(), im.Layers, im.Config.User, config.GetLinux().GetSecurityContext()); err != nil {
		return nil, fmt.Errorf("container %s: %w", config.GetMetadata().GetName(), err)
	}
	if err = l.mountImages(c); err != nil {
		return nil, err
	}
	if config.GetLogPath() != "" && s.Config.GetLogDirectory() != "" {
		c.LogPath = filepath.Join(s.Config.GetLogDirectory(), config.GetLogPath())
	}
	if err = l.askedDevices(c); err != nil {
		return nil, err
	}
	_, err = l.made(s, c)
	return c, err
}

// place makes what a container needs on disk, and its record.
func (l *loop) place(c *state.Container) error {
	if err := l.hands.PrepareLayer(c.ID); err != nil {
		return err
	}
	if c.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(c.LogPath), 0o755); err != nil {
			return fault.New(fault.Exhausted, "container log's folder: %w", err)
		}
		step.At("folder for the log made")
	}
	return l.store.PutContainer(c)
}

// StartContainer clones the process and returns once it has executed its program.
// Errors: whatever init met, with the stage; the container is then exited with StartError and code 128. After Temporary
// (the monitor died amid) it is still created and may be started again.
func (l *loop) StartContainer(ctx context.Context, id string) error {
	c, err := l.store.Container(id)
	if err != nil {
		return err
	}
	defer l.locks.take(c.ID)()
	if c, err = l.store.Container(c.ID); err != nil {
		return err
	}
	if c.State == state.Running {
		return nil // a repetition
	}
	next, err := c.Step(state.Started)
	if err != nil {
		return err
	}
	s, err := l.store.Sandbox(c.Sandbox)
	if err != nil {
		return err
	}
	if s.State != state.Ready {
		return fault.New(fault.Invalid, "container %s: its sandbox is stopped", c.ID)
	}
	if err := l.nri.StartContainer(ctx, l.pluginPod(s), l.pluginContainer(s, c)); err != nil {
		return l.failStart(c, err)
	}
	v := *c
	if err := l.launch(s, &v); err != nil {
		return l.failStart(c, err)
	}
	v.State = next
	if err := l.store.PutContainer(&v); err != nil {
		slog.Error("start is kept in memory only", "id", v.ID, "error", err)
	}
	slog.Info("container started", "id", v.ID, "container", v.Meta().GetName(), "sandbox", v.Sandbox, "pid", v.Pid)
	l.tell(&v, cri.ContainerEventType_CONTAINER_STARTED_EVENT)
	l.nri.PostStart(ctx, l.pluginPod(s), l.pluginContainer(s, &v))
	return nil
}

// launch makes the cgroup and has the monitor clone; it does not follow the client's context, as half a start helps nobody.
func (l *loop) launch(s *state.Sandbox, c *state.Container) error {
	if err := l.ensurePause(s, c); err != nil {
		return err
	}
	made, err := l.made(s, c)
	if err != nil {
		return err
	}
	if err := l.hands.MakeCgroup(c.Cgroup, made.Spec.Linux.Resources); err != nil {
		return err
	}
	start, err := l.start(s, c, made)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(l.tasks.Context(), callLimit+start.Hooks.Limit())
	defer stop()
	p, _, err := l.keeper.Start(ctx, start, nil)
	if err != nil {
		return err
	}
	c.Pid, c.StartTime, c.Started = p.Pid, p.StartTime, p.Started
	return nil
}

// failStart records a start that left no process.
func (l *loop) failStart(c *state.Container, cause error) error {
	if err := l.hands.EndCgroup(c.Cgroup); err != nil {
		slog.Warn("container's cgroup stays", "id", c.ID, "error", err)
	}
	l.poststop(c.ID)
	if fault.Is(cause, fault.Temporary) {
		return cause
	}
	next, err := c.Step(state.Failed)
	if err != nil {
		return err
	}
	v := *c
	v.State, v.Reason, v.Message, v.ExitCode = next, "StartError", cause.Error(), startError
	v.Started, v.Finished = time.Unix(0, 0), time.Now()
	if err := l.store.PutContainer(&v); err != nil {
		slog.Error("failed start is kept in memory only", "id", v.ID, "error", err)
	}
	l.over(v.ID)
	l.tell(&v, cri.ContainerEventType_CONTAINER_STOPPED_EVENT)
	l.pluginStopped(&v)
	return fmt.Errorf("container %s: %w", c.Meta().GetName(), cause)
}

// RemoveContainer removes a container and what it wrote, killing it first if it runs. Repeat: safe, also for an unknown id.
func (l *loop) RemoveContainer(ctx context.Context, id string) error {
	c, err := l.store.Container(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := l.kill(ctx, c.ID); err != nil {
		return err
	}
	defer l.locks.take(c.ID)()
	if c, err = l.store.Container(c.ID); err != nil {
		return nil
	}
	if _, err := c.Step(state.Removed); err != nil {
		return fault.As(fault.Busy, err)
	}
	if err := l.hands.EndCgroup(c.Cgroup); err != nil {
		return err
	}
	l.poststop(c.ID)
	if err := l.hands.RemoveLayer(c.ID); err != nil {
		return err
	}
	if err := l.keeper.Forget(ctx, c.ID); err != nil {
		slog.Debug("monitor did not forget", "id", c.ID, "error", err)
	}
	if err := l.store.DropContainer(c.ID); err != nil {
		return err
	}
	l.releaseImages(c)
	l.sizes.Drop(filepath.Join(l.hands.Layer(c.ID), "upper"))
	l.over(c.ID)
	l.tell(c, cri.ContainerEventType_CONTAINER_DELETED_EVENT)
	if s, err := l.store.Sandbox(c.Sandbox); err == nil {
		l.nri.RemoveContainer(ctx, c.ID, l.pluginPod(s), l.pluginContainer(s, c))
	}
	return nil
}

// UpdateContainerResources changes limits; fields that are zero stay as they are. Before the start it only records.
func (l *loop) UpdateContainerResources(ctx context.Context, id string, r *cri.LinuxContainerResources) error {
	c, err := l.store.Container(id)
	if err != nil {
		return err
	}
	s, err := l.store.Sandbox(c.Sandbox)
	if err != nil {
		return err
	}
	changed, err := l.nri.UpdateContainer(ctx, c.ID, l.pluginPod(s), l.pluginContainer(s, c), nri.FromCRI(r))
	if err != nil {
		return err
	}
	if changed != nil {
		r = changed.CRI()
	}
	if err := l.setLimits(c.ID, r); err != nil {
		return err
	}
	if c, err = l.store.Container(c.ID); err == nil {
		l.nri.PostUpdate(ctx, l.pluginPod(s), l.pluginContainer(s, c))
	}
	return nil
}

// setLimits changes limits, whoever wants it.
func (l *loop) setLimits(id string, r *cri.LinuxContainerResources) error {
	c, err := l.store.Container(id)
	if err != nil {
		return err
	}
	defer l.locks.take(c.ID)()
	if c, err = l.store.Container(c.ID); err != nil {
		return err
	}
	if c.State == state.Exited {
		return fault.New(fault.Invalid, "container %s has exited, its limits cannot change", c.ID)
	}
	merged := plan.Merge(c.Config.GetLinux().GetResources(), r)
	if c.State == state.Running {
		if err := l.hands.SetCgroup(c.Cgroup, plan.Limits(merged)); err != nil {
			return err
		}
	}
	v := *c
	v.Config = plan.WithResources(c.Config, merged)
	return l.store.PutContainer(&v)
}

// ReopenContainerLog returns once the log file exists anew and nothing goes to the old one.
func (l *loop) ReopenContainerLog(ctx context.Context, id string) error {
	_, c, err := l.running(id)
	if err != nil {
		return err
	}
	return l.keeper.Reopen(ctx, c.ID)
}
