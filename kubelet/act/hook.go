package act

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/kubelet/plan"
)

// hookHTTP bounds an HTTP hook, as upstream's client does.
const hookHTTP = 30 * time.Second

// runHook runs a lifecycle hook, unless a mark says that it ran before. Source: API docs of Lifecycle.
func (a *Act) runHook(ctx context.Context, pod *v1.Pod, t plan.RunHook) plan.Result {
	spec, _ := plan.Lookup(pod, t.Container)
	if spec == nil || spec.Lifecycle == nil {
		return plan.Result{}
	}
	h := spec.Lifecycle.PostStart
	if t.Hook == plan.PreStop {
		h = spec.Lifecycle.PreStop
	}
	if h == nil {
		return plan.Result{}
	}
	if t.For > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.For)
		defer cancel()
	}
	first, err := a.begin(pod.UID, mark{t.Hook, t.ID})
	if err != nil {
		return wrong(err, "HookError")
	}
	if !first {
		return plan.Result{}
	}
	return wrong(a.hook(ctx, pod, spec, t.ID, h, t.For), "HookError")
}

func (a *Act) hook(ctx context.Context, pod *v1.Pod, spec *v1.Container, id string, h *v1.LifecycleHandler, bound time.Duration) error {
	switch {
	case h.Exec != nil:
		// An exec hook has no timeout of its own; what bounds it is the grace period.
		r, err := a.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: h.Exec.Command, Timeout: int64((bound + time.Second - 1) / time.Second)})
		if err != nil {
			return fmt.Errorf("exec %q in container %s: %s", h.Exec.Command, spec.Name, text(err))
		}
		if r.ExitCode != 0 {
			return fmt.Errorf("command '%s' exited with %d: %s", strings.Join(h.Exec.Command, " "), r.ExitCode, strings.TrimSpace(clip(append(r.Stderr, r.Stdout...))))
		}
		return nil
	case h.HTTPGet != nil:
		return a.hookGet(ctx, pod, spec, h.HTTPGet)
	case h.Sleep != nil:
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil // the grace period is over: that is no failure of the hook
			}
			return ctx.Err()
		case <-time.After(time.Duration(h.Sleep.Seconds) * time.Second):
			return nil
		}
	}
	return fault.New(fault.Invalid, "container %s: the hook names no exec, httpGet or sleep", spec.Name)
}

// clip shortens output for an event.
func clip(b []byte) string { return strings.ToValidUTF8(string(b[:min(len(b), 1024)]), "�") }

func (a *Act) hookGet(ctx context.Context, pod *v1.Pod, spec *v1.Container, h *v1.HTTPGetAction) error {
	port, err := portOf(spec, h.Port)
	if err != nil {
		return err
	}
	host := h.Host
	if host == "" {
		ips, err := a.addresses(ctx, pod)
		if err != nil {
			return err
		}
		host = ips
	}
	scheme := strings.ToLower(string(h.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	url := scheme + "://" + net.JoinHostPort(host, strconv.Itoa(port)) + "/" + strings.TrimPrefix(h.Path, "/")
	ctx, cancel := context.WithTimeout(ctx, hookHTTP)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("container %s: hook %s: %w", spec.Name, url, err)
	}
	for _, header := range h.HTTPHeaders {
		req.Header.Add(header.Name, header.Value)
		if strings.EqualFold(header.Name, "Host") {
			req.Host = header.Value
		}
	}
	client := &http.Client{Transport: hookTransport()}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	io.Copy(io.Discard, io.LimitReader(res.Body, 10<<10))
	if res.StatusCode >= 400 {
		return fmt.Errorf("GET %s: %s", url, res.Status)
	}
	return nil
}

// addresses finds where the pod listens: its sandbox's address, or the node's.
func (a *Act) addresses(ctx context.Context, pod *v1.Pod) (string, error) {
	if ips := a.Node().IPs; pod.Spec.HostNetwork && len(ips) > 0 {
		return ips[0], nil
	}
	r := a.look(ctx, pod.UID)
	if r.World != nil {
		for _, s := range r.World.Sandboxes {
			if s.Ready && len(s.IPs) > 0 {
				return s.IPs[0], nil
			}
		}
	}
	return "", fault.New(fault.NotFound, "pod %s has no address to send the hook to", pod.Name)
}

func portOf(spec *v1.Container, p intstr.IntOrString) (int, error) {
	n := p.IntValue()
	if p.Type == intstr.String {
		for _, named := range spec.Ports {
			if named.Name == p.StrVal {
				n = int(named.ContainerPort)
			}
		}
	}
	if n < 1 || n > 65535 {
		return 0, fault.New(fault.Invalid, "container %s has no port %q", spec.Name, p.String())
	}
	return n, nil
}
