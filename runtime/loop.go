package runtime

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/monitor/wire"
	"worknode/runtime/act"
	"worknode/runtime/api"
	"worknode/runtime/handler"
	"worknode/runtime/image"
	"worknode/runtime/metrics"
	"worknode/runtime/nri"
	"worknode/runtime/plan"
	"worknode/runtime/registry"
	"worknode/runtime/state"
	"worknode/runtime/stream"
	"worknode/runtime/verify"
	"worknode/task"
)

// callLimit bounds an operation that goes on after its client has left.
const callLimit = 2 * time.Minute

// loop is where requests and exits meet the records: each verb of CRI checks the record, asks the plan, lets the hands
// act and writes the outcome, under the lock of the object it concerns. No lock is held while waiting for a process.
type loop struct {
	opt      Options
	store    *state.Store
	hands    *act.Hands
	keeper   *act.Keeper
	images   *image.Store
	registry *registry.Client
	policy   atomic.Pointer[verify.Policy]
	pulls    pulls
	net      *networks
	nri      *nri.Hub // nil when it is off
	stream   *stream.Server
	tasks    *task.Group
	events   hub
	locks    locks
	once     singleflight.Group
	sizes    act.Written
	counts   metrics.Own

	handlers map[string]handler.Config // beside the native one; does not change

	mu       sync.Mutex
	features map[string]handler.Features // of handlers, as far as they have told
	lives    map[string]*life            // containers that may still exit
}

// life is what waits for a container's end.
type life struct {
	done  chan struct{} // closed when the exit is recorded
	timer *time.Timer   // kills at the deadline of a stop; nil without one
}

// newID is a name for a sandbox or container: 64 hex digits, as the field expects.
func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// join runs fn once for all callers that ask for the same thing at the same time. The work goes on when its client
// gives up, so that the client's repetition finds it done. Source: CRI clients repeat after a timeout.
func (l *loop) join(ctx context.Context, key string, fn func(context.Context) (string, error)) (string, error) {
	result := l.once.DoChan(key, func() (any, error) {
		ctx, stop := context.WithTimeout(l.tasks.Context(), callLimit)
		defer stop()
		return fn(ctx)
	})
	select {
	case r := <-result:
		id, _ := r.Val.(string)
		return id, r.Err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// born gives a container that may exit a life.
func (l *loop) born(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lives[id] == nil {
		l.lives[id] = &life{done: make(chan struct{})}
	}
}

// life returns what waits for a container's end; nil if it has ended.
func (l *loop) life(id string) *life {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lives[id]
}

// over ends a life: waiters wake, a pending kill is called off.
func (l *loop) over(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.lives[id]; v != nil {
		if v.timer != nil {
			v.timer.Stop()
		}
		close(v.done)
		delete(l.lives, id)
	}
}

// exit takes one exit from the keeper; recording it may wait for the object's lock, so it gets a task of its own.
func (l *loop) exit(e wire.Exit) {
	l.tasks.Go("exit "+e.ID, func(ctx context.Context) { l.exited(ctx, e) })
}

// exited records how a container ended, tells whoever waits, and cleans up behind it. Repeat: safe.
// Crash: the monitor repeats the exit until Forget, which comes last.
func (l *loop) exited(ctx context.Context, e wire.Exit) {
	unlock := l.locks.take(e.ID)
	defer unlock()
	c, err := l.store.Container(e.ID)
	if err != nil {
		l.strangerExited(ctx, e)
		return
	}
	if c.State != state.Exited {
		next, err := c.Step(state.Died)
		if err != nil {
			slog.Error("exit of a container that cannot have one", "id", c.ID, "error", err)
			return
		}
		v := *c
		v.State, v.ExitCode, v.Finished, v.Deadline = next, e.Code, e.At, time.Time{}
		v.Reason = reason(e)
		if v.Started.IsZero() {
			v.Started = v.Created
		}
		slog.Info("container exited", "id", v.ID, "container", v.Meta().GetName(), "code", e.Code, "reason", v.Reason)
		err = l.store.PutContainer(&v)
		l.over(v.ID)
		l.tell(&v, cri.ContainerEventType_CONTAINER_STOPPED_EVENT)
		l.pluginStopped(&v)
		if err != nil {
			slog.Error("exit is kept in memory only", "id", v.ID, "error", err)
			return // not forgotten: the monitor repeats it to the next runtime
		}
	}
	if err := l.hands.EndCgroup(c.Cgroup); err != nil {
		slog.Warn("container's cgroup stays", "id", c.ID, "error", err)
	}
	l.poststop(c.ID)
	if err := l.keeper.Forget(ctx, c.ID); err != nil {
		slog.Debug("monitor did not forget", "id", c.ID, "error", err)
	}
}

// poststop has a container's handler delete it, if it has one, and runs the hooks that follow a container's end; what they meet is worth a warning and no more.
// Source: OCI runtime.md, "Lifecycle" 13.
func (l *loop) poststop(id string) {
	if err := l.hands.EndForeign(l.tasks.Context(), id); err != nil {
		slog.Warn("bundle of another handler stays", "id", id, "error", err)
	}
	if err := l.hands.EndBundle(id); err != nil {
		slog.Warn("poststop hook", "id", id, "error", err)
	}
}

// strangerExited handles what is no container: a pod's init, or an exec of an earlier life.
func (l *loop) strangerExited(ctx context.Context, e wire.Exit) {
	for _, s := range l.store.Sandboxes() {
		if s.Pause != "" && s.Pause == e.ID {
			slog.Warn("pod's init ended, its pid namespace is gone", "sandbox", s.ID, "code", e.Code)
			l.dropPause(s.ID, e.ID)
		}
	}
	_ = l.keeper.Forget(ctx, e.ID) // unforgotten, it is told again to the next runtime
}

// reason is CRI's word for an exit. Source: the words that kubelet and its users know.
func reason(e wire.Exit) string {
	switch {
	case e.Unknown:
		return "Unknown"
	case e.OOMKilled:
		return "OOMKilled"
	case e.Code == 0:
		return "Completed"
	}
	return "Error"
}

// made plans a container from its record and what the hands found out.
func (l *loop) made(s *state.Sandbox, c *state.Container) (plan.Made, error) {
	devices, err := act.Devices(c.Config)
	if err != nil {
		return plan.Made{}, err
	}
	pid, err := l.pidNamespace(s, c)
	if err != nil {
		return plan.Made{}, err
	}
	host := l.hands.Host
	host.Cgroups = l.hands.CgroupBinds(c.Cgroup)
	return plan.Container(plan.Input{
		Sandbox: s, Config: c.Config, Image: c.Image, User: c.User, Host: host, Files: l.hands.Files(s),
		Pins: l.hands.PinPaths(s), Pid: pid, Devices: devices, Volumes: c.Volumes, Cgroup: c.Cgroup, Edits: c.Edits,
	})
}

// running finds a container and its sandbox, and refuses a container that has no process.
func (l *loop) running(id string) (*state.Sandbox, *state.Container, error) {
	c, err := l.store.Container(id)
	if err != nil {
		return nil, nil, err
	}
	if c.State != state.Running {
		return nil, nil, fault.New(fault.Invalid, "container %s is %s, not running", c.ID, c.State)
	}
	s, err := l.store.Sandbox(c.Sandbox)
	return s, c, err
}

// tell sends a container event with the pod's whole state in it.
func (l *loop) tell(c *state.Container, kind cri.ContainerEventType) {
	l.events.send(func() *cri.ContainerEventResponse {
		s, _ := l.store.Sandbox(c.Sandbox)
		return api.Event(c.ID, kind, time.Now(), s, l.store.Containers(c.Sandbox))
	})
}

func (l *loop) tellSandbox(s *state.Sandbox, kind cri.ContainerEventType) {
	l.events.send(func() *cri.ContainerEventResponse {
		return api.Event(s.ID, kind, time.Now(), s, l.store.Containers(s.ID))
	})
}

// ownCgroup is the parent of a sandbox whose request names none.
func (l *loop) ownCgroup(id string) string { return path.Join("/", l.opt.CgroupRoot, id) }
