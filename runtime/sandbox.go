package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/plan"
	"worknode/runtime/state"
	"worknode/step"
)

// RunPodSandbox makes a sandbox and returns its id. Repeat: the same metadata joins the call under way, or finds the
// sandbox it made.
// Errors: Invalid, Unsupported for the request; Exists when a stopped sandbox still has the name; Temporary without network.
func (l *loop) RunPodSandbox(ctx context.Context, config *cri.PodSandboxConfig, handler string) (string, error) {
	if err := plan.Sandbox(config, handler, l.handlerNames()); err != nil {
		return "", err
	}
	return l.join(ctx, "sandbox\x00"+state.SandboxName(config), func(ctx context.Context) (string, error) {
		return l.runSandbox(ctx, config, handler)
	})
}

func (l *loop) runSandbox(ctx context.Context, config *cri.PodSandboxConfig, handler string) (string, error) {
	name := state.SandboxName(config)
	for _, s := range l.store.Sandboxes() {
		if s.Name() != name {
			continue
		}
		if s.State == state.Ready {
			return s.ID, nil
		}
		return "", fault.Hint(fault.New(fault.Exists, "sandbox %s/%s attempt %d: stopped sandbox %s has the same metadata",
			s.Meta().GetNamespace(), s.Meta().GetName(), s.Meta().GetAttempt(), s.ID), "remove it first, or raise the attempt")
	}
	opts := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	s := &state.Sandbox{
		ID: newID(), State: state.Ready, Created: time.Now(), Handler: handler, Config: config,
		Hostname: config.GetHostname(), CgroupParent: config.GetLinux().GetCgroupParent(),
		HostNetwork: opts.GetNetwork() == cri.NamespaceMode_NODE, HostIPC: opts.GetIpc() == cri.NamespaceMode_NODE,
	}
	if s.Hostname == "" || s.HostNetwork {
		s.Hostname, _ = os.Hostname()
	}
	if s.CgroupParent == "" {
		s.CgroupParent, s.OwnCgroup = l.ownCgroup(s.ID), true
	}
	s.CgroupParent = path.Clean("/" + s.CgroupParent)
	if err := l.makeSandbox(ctx, s); err != nil {
		l.unmakeSandbox(s)
		return "", err
	}
	step.At("about to answer: sandbox")
	slog.Info("sandbox ready", "id", s.ID, "pod", s.Meta().GetNamespace()+"/"+s.Meta().GetName(), "uid", s.Meta().GetUid(), "ips", s.IPs)
	l.tellSandbox(s, cri.ContainerEventType_CONTAINER_CREATED_EVENT)
	l.tellSandbox(s, cri.ContainerEventType_CONTAINER_STARTED_EVENT)
	return s.ID, nil
}

// makeSandbox makes all parts; the record comes last, so a crash before leaves only remains that the next start finds
// by the id in their names.
func (l *loop) makeSandbox(ctx context.Context, s *state.Sandbox) error {
	if !s.HostNetwork && l.net.bridge == nil { // a bridge that is unwell still says more when it is tried
		if err := l.net.cni.Connects(); err != nil {
			return fmt.Errorf("sandbox: %w", err)
		}
	}
	if err := l.hands.MakeSandbox(ctx, s); err != nil {
		return err
	}
	if !s.HostNetwork {
		if err := l.net.connect(ctx, s, l.hands.NetPath(s)); err != nil {
			return err
		}
	}
	if err := l.hands.WriteFiles(s); err != nil {
		return err
	}
	if err := l.nri.RunPod(ctx, s.ID, l.pluginPod(s)); err != nil {
		return err
	}
	if err := l.store.PutSandbox(s); err != nil {
		return err
	}
	l.nri.Made(s.ID)
	return nil
}

// unmakeSandbox takes back a sandbox that was made in part; its context is fresh, as the old one may be why we are here.
func (l *loop) unmakeSandbox(s *state.Sandbox) {
	ctx, stop := context.WithTimeout(context.Background(), callLimit)
	defer stop()
	l.nri.Unmade(ctx, s.ID)
	if err := l.dissolve(ctx, s, true); err != nil {
		slog.Warn("half-made sandbox stays until the next start", "id", s.ID, "error", err)
	}
}

// dissolve releases addresses, namespaces, files and a cgroup of ours. Repeat: safe. While the network does not let go the
// namespace stays, as its plugins may need it; with force it goes nevertheless.
func (l *loop) dissolve(ctx context.Context, s *state.Sandbox, force bool) error {
	var errs []error
	if !s.HostNetwork && !s.NetworkDone {
		if err := l.net.disconnect(ctx, s, force); err != nil {
			return err
		}
	}
	errs = append(errs, l.hands.RemoveSandbox(s.ID))
	if s.OwnCgroup {
		errs = append(errs, l.hands.EndCgroup(s.CgroupParent))
	}
	return errors.Join(errs...)
}

// StopPodSandbox kills what runs in a sandbox and releases its addresses. Repeat: safe, also for an unknown id.
func (l *loop) StopPodSandbox(ctx context.Context, id string) error {
	s, err := l.store.Sandbox(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.locks.take(s.ID)()
	return l.stopSandbox(ctx, s.ID, false)
}

// stopSandbox does the work; the caller holds the sandbox's lock. force is dissolve's.
func (l *loop) stopSandbox(ctx context.Context, id string, force bool) error {
	s, err := l.store.Sandbox(id)
	if fault.Is(err, fault.NotFound) {
		return nil // removed while we waited for the lock
	}
	if err != nil {
		return err
	}
	v := *s
	if v.State == state.Ready {
		v.State = state.NotReady // first, so that nothing starts behind our back
		if err := l.store.PutSandbox(&v); err != nil {
			return err
		}
	}
	for _, c := range l.store.Containers(s.ID) {
		l.locks.take(c.ID)() // a start under way ends first, and is then seen
		if err := l.kill(ctx, c.ID); err != nil {
			return err
		}
	}
	if !s.NetworkDone {
		l.pluginStopPod(ctx, &v)
	}
	if s.State == state.NotReady && s.NetworkDone {
		return nil
	}
	l.killPause(ctx, s)
	if err := l.dissolve(ctx, s, force); err != nil {
		return err
	}
	done := v
	done.NetworkDone, done.Pause, done.PausePid = true, "", 0
	if err := l.store.PutSandbox(&done); err != nil {
		return err
	}
	slog.Info("sandbox stopped", "id", s.ID, "pod", s.Meta().GetNamespace()+"/"+s.Meta().GetName())
	l.tellSandbox(&done, cri.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return nil
}

// RemovePodSandbox removes a sandbox with its containers. Repeat: safe, also for an unknown id.
func (l *loop) RemovePodSandbox(ctx context.Context, id string) error {
	s, err := l.store.Sandbox(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.locks.take(s.ID)()
	if err := l.stopSandbox(ctx, s.ID, true); err != nil {
		return err
	}
	for _, c := range l.store.Containers(s.ID) {
		if err := l.RemoveContainer(ctx, c.ID); err != nil {
			return err
		}
	}
	gone, err := l.store.Sandbox(s.ID)
	if err != nil {
		return nil
	}
	if err := l.store.DropSandbox(s.ID); err != nil {
		return err
	}
	l.nri.RemovePod(ctx, gone.ID, l.pluginPod(gone))
	l.tellSandbox(gone, cri.ContainerEventType_CONTAINER_DELETED_EVENT)
	return nil
}

// addresses parses what a record holds; a record is ours, so a bad address is left out.
func addresses(s *state.Sandbox) []netip.Addr {
	var out []netip.Addr
	for _, text := range s.IPs {
		if ip, err := netip.ParseAddr(text); err == nil {
			out = append(out, ip)
		}
	}
	return out
}
