package act

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/kubelet/plan"
	"worknode/kubelet/state"
	"worknode/kubelet/translate"
)

// Pod is what the runtime has of one pod, with the names its labels tell.
type Pod struct {
	Namespace, Name string
	state.World
}

// World lists everything the runtime holds for pods, by UID. It is how a starting kubelet learns what runs.
// Errors: the runtime's; one container that cannot be read fails the whole look, as half a picture would restart things.
func (a *Act) World(ctx context.Context) (map[types.UID]*Pod, error) {
	return a.list(ctx, nil)
}

// Census is a cheap World for the audit: how many containers of each pod run, by UID.
func (a *Act) Census(ctx context.Context) (map[types.UID]int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	r, err := a.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return nil, fmt.Errorf("list running containers: %w", err)
	}
	out := map[types.UID]int{}
	for _, c := range r.Containers {
		out[types.UID(c.Labels[translate.LabelPodUID])]++
	}
	return out, nil
}

// look reads one pod's sandboxes and containers.
func (a *Act) look(ctx context.Context, uid types.UID) plan.Result {
	all, err := a.list(ctx, map[string]string{translate.LabelPodUID: string(uid)})
	if err != nil {
		return wrong(err, "FailedSync")
	}
	if p := all[uid]; p != nil {
		return plan.Result{World: &p.World}
	}
	return plan.Result{World: &state.World{}}
}

func (a *Act) list(ctx context.Context, labels map[string]string) (map[types.UID]*Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	out := map[types.UID]*Pod{}
	boxes, err := a.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: labels}})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	at := func(labels map[string]string) *Pod {
		uid := types.UID(labels[translate.LabelPodUID])
		if uid == "" {
			return nil // not a pod of a kubelet
		}
		if out[uid] == nil {
			out[uid] = &Pod{Namespace: labels[translate.LabelPodNamespace], Name: labels[translate.LabelPodName]}
		}
		return out[uid]
	}
	for _, b := range boxes.Items {
		p := at(b.Labels)
		if p == nil {
			continue
		}
		box := state.Sandbox{ID: b.Id, Attempt: b.GetMetadata().GetAttempt(), CreatedAt: nanos(b.CreatedAt)}
		if b.State == cri.PodSandboxState_SANDBOX_READY {
			if box, err = a.sandbox(ctx, b.Id); err != nil && kindOf(err) != fault.NotFound {
				return nil, fmt.Errorf("sandbox %s of pod %s/%s: %w", b.Id, p.Namespace, p.Name, err)
			}
		}
		if box.ID != "" {
			p.Sandboxes = append(p.Sandboxes, box)
		}
	}
	list, err := a.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: labels}})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	did := a.did(labels)
	for _, c := range list.Containers {
		p := at(c.Labels)
		if p == nil {
			continue
		}
		one, err := a.container(ctx, c.Id)
		if kindOf(err) == fault.NotFound {
			continue // it went while we looked
		}
		if err != nil {
			return nil, fmt.Errorf("container %s of pod %s/%s: %w", c.Id, p.Namespace, p.Name, err)
		}
		one.Sandbox = c.PodSandboxId
		one.PostStart, one.PreStop = did[mark{plan.PostStart, c.Id}], did[mark{plan.PreStop, c.Id}]
		p.Containers = append(p.Containers, one)
	}
	return out, nil
}

// inspect reads one container, with no container as the answer if the runtime has none of that id.
func (a *Act) inspect(ctx context.Context, id string) plan.Result {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c, err := a.container(ctx, id)
	if kindOf(err) == fault.NotFound {
		return plan.Result{}
	}
	if err != nil {
		return wrong(err, "FailedSync")
	}
	return plan.Result{Container: &c}
}

// container reads one container's record. Its Sandbox is not part of the runtime's answer and stays empty.
func (a *Act) container(ctx context.Context, id string) (state.Container, error) {
	r, err := a.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return state.Container{}, err
	}
	s := r.Status
	c := state.Container{
		Name: s.GetMetadata().GetName(), ID: s.Id, Attempt: int(s.GetMetadata().GetAttempt()),
		Image: s.Annotations[noteImage], ImageRef: s.ImageRef,
		CreatedAt: nanos(s.CreatedAt), StartedAt: nanos(s.StartedAt), FinishedAt: nanos(s.FinishedAt),
		LogPath: s.LogPath, User: user(s.User),
	}
	if n, err := strconv.Atoi(s.Annotations[noteBackoff]); err == nil {
		c.Backoff = time.Duration(n) * time.Second
	}
	switch s.State {
	case cri.ContainerState_CONTAINER_CREATED:
		c.Phase = state.Created
	case cri.ContainerState_CONTAINER_RUNNING:
		c.Phase = state.Running
	default:
		// A container that the runtime cannot tell anything about counts as ended: its code is not a success.
		c.Phase, c.Known = state.Exited, true
		c.ExitCode, c.Reason, c.Message = s.ExitCode, s.Reason, s.Message
		if s.State == cri.ContainerState_CONTAINER_UNKNOWN {
			c.ExitCode, c.Reason = 137, "ContainerStatusUnknown"
		}
		if m := a.lastWords(s); m != "" {
			c.Message = m
		}
	}
	return c, nil
}

const (
	mostMessage = 4096 // bytes of a termination message
	mostLog     = 2048 // bytes of log that stand in for it
	mostLines   = 80
)

// lastWords reads a container's termination message, or the end of its log if its policy asks for that.
// Source: API docs of Container.terminationMessagePolicy.
func (a *Act) lastWords(s *cri.ContainerStatus) string {
	// The path is ours, from an annotation we wrote; the check keeps a forged record from showing other files.
	if path := s.Annotations[noteTermination]; path != "" && strings.HasPrefix(path, a.Root+"/") && !strings.Contains(path, "..") {
		if m := tail(path, mostMessage, true); m != "" {
			return m
		}
	}
	if s.Annotations[translate.NoteTerminationPolicy] != string(v1.TerminationMessageFallbackToLogsOnError) || s.ExitCode == 0 || s.LogPath == "" {
		return ""
	}
	var lines []string
	for _, l := range strings.Split(strings.TrimSuffix(tail(s.LogPath, 2*mostLog+64*mostLines, false), "\n"), "\n") {
		// TIME STREAM TAG TEXT; a first line that was cut has fewer fields or no stream and is dropped
		if f := strings.SplitN(l, " ", 4); len(f) == 4 && (f[1] == "stdout" || f[1] == "stderr") {
			lines = append(lines, f[3])
		}
	}
	lines = lines[max(0, len(lines)-mostLines):]
	if len(lines) == 0 {
		return ""
	}
	text := strings.Join(lines, "\n") + "\n"
	return text[max(0, len(text)-mostLog):]
}

// tail reads at most n bytes of a file: its first ones or its last. A file that cannot be read is empty.
func tail(path string, n int64, head bool) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return ""
	} else if !head && st.Size() > n {
		if _, err := f.Seek(-n, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, n))
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(string(b), "�")
}

func user(u *cri.ContainerUser) *v1.ContainerUser {
	l := u.GetLinux()
	if l == nil {
		return nil
	}
	return &v1.ContainerUser{Linux: &v1.LinuxContainerUser{UID: l.Uid, GID: l.Gid, SupplementalGroups: l.SupplementalGroups}}
}

// nanos is a time as CRI writes it; zero stays zero.
func nanos(n int64) time.Time {
	if n <= 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
