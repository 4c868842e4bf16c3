package plan

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/fault"
	"worknode/kubelet/state"
)

var update = flag.Bool("update", false, "rewrite the plan, say and status lines of the scenes")

// A scene is a story in lines. "want" describes the pod, "have" what is found (each line adds to those before); "plan",
// "say" and "status" are what the planner answers, checked or, with -update, written. Words of want:
//
//	web  init/NAME  sidecar/NAME  ephemeral/NAME  ephemeral/NAME@TARGET  NAME:postStart  NAME:preStop  NAME:startup  NAME:readiness  NAME:liveness
//	policy=Never|OnFailure|Always  grace=SECONDS  deadline=SECONDS  delete  gone  reject=REASON
//
// Words of have:
//
//	sandbox=ready|lost|stopped  NAME=created|running|exited(CODE)  NAME#ATTEMPT=…  NAME.startup=success  (readiness, liveness)
//	NAME.postStart=begun|done|failed  NAME.preStop=…  NAME.backoff=10s  +SECONDS  busy=KEY  idle=KEY  broken=KEY:REASON
//	volumes=none|present  cgroup=none  written=PHASE  removed=NAME  noimage=NAME  image=NAME
func TestScenes(t *testing.T) {
	files, err := filepath.Glob("testdata/*.scene")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenes: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".scene"), func(t *testing.T) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(b))
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			have, want := strings.Split(got, "\n"), strings.Split(string(b), "\n")
			for i := range max(len(have), len(want)) {
				if i >= len(have) || i >= len(want) || have[i] != want[i] {
					t.Fatalf("line %d differs; the planner now says:\n%s", i+1, got)
				}
			}
		})
	}
}

// stage is where a scene plays.
type stage struct {
	t     *testing.T
	now   time.Time
	want  state.Want
	have  state.Have
	begin time.Time
}

func play(t *testing.T, text string) string {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := &stage{t: t, now: start, begin: start}
	var out []string
	var p *Plan
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "want":
			s.setWant(strings.Fields(rest))
			p = nil
		case "have":
			for _, w := range strings.Fields(rest) {
				s.setHave(w)
			}
			p = nil
		case "plan", "say", "status":
			if p == nil {
				p = s.plan()
				out = append(out, s.tell(p)...)
			}
			continue
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n") + "\n"
}

func (s *stage) setWant(words []string) {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"}}
	grace := int64(30)
	pod.Spec.TerminationGracePeriodSeconds = &grace
	pod.Spec.RestartPolicy = v1.RestartPolicyAlways
	s.want = state.Want{Pod: pod, Runtime: "r"}
	always := v1.ContainerRestartPolicyAlways
	for _, w := range words {
		key, value, is := strings.Cut(w, "=")
		switch {
		case w == "delete":
			at := metav1.NewTime(s.now)
			pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &at, pod.Spec.TerminationGracePeriodSeconds
		case w == "gone":
			s.want.Gone = true
		case is && key == "policy":
			pod.Spec.RestartPolicy = v1.RestartPolicy(value)
		case is && key == "grace":
			*pod.Spec.TerminationGracePeriodSeconds = s.number(value)
		case is && key == "deadline":
			n := s.number(value)
			pod.Spec.ActiveDeadlineSeconds = &n
		case is && key == "reject":
			s.want.Reject = state.Cause{Reason: value, Message: "no room"}
		case strings.Contains(w, ":"):
			name, what, _ := strings.Cut(w, ":")
			c, _ := Lookup(pod, name)
			garnish(c, what)
		case strings.HasPrefix(w, "init/"):
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, v1.Container{Name: w[5:], Image: "i"})
		case strings.HasPrefix(w, "ephemeral/"):
			name, target, _ := strings.Cut(w[len("ephemeral/"):], "@")
			pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, v1.EphemeralContainer{
				TargetContainerName: target, EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: name, Image: "i"}})
		case strings.HasPrefix(w, "sidecar/"):
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, v1.Container{Name: w[8:], Image: "i", RestartPolicy: &always})
		default:
			pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: w, Image: "i"})
		}
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			if !s.begin.Before(s.now) && len(s.have.Containers) == 0 {
				s.have.Images = state.Put(s.have.Images, c.Name, state.Image{Name: "i", ID: "i"})
			}
		}
	}
}

func garnish(c *v1.Container, what string) {
	hook := &v1.LifecycleHandler{Exec: &v1.ExecAction{}}
	if c.Lifecycle == nil && strings.HasPrefix(what, "p") {
		c.Lifecycle = &v1.Lifecycle{}
	}
	switch what {
	case "postStart":
		c.Lifecycle.PostStart = hook
	case "preStop":
		c.Lifecycle.PreStop = hook
	case "startup":
		c.StartupProbe = &v1.Probe{}
	case "readiness":
		c.ReadinessProbe = &v1.Probe{}
	case "liveness":
		c.LivenessProbe = &v1.Probe{}
	}
}

func (s *stage) number(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		s.t.Fatalf("%q is no number", text)
	}
	return n
}

func (s *stage) setHave(w string) {
	if d, ok := strings.CutPrefix(w, "+"); ok {
		s.now = s.now.Add(time.Duration(s.number(d)) * time.Second)
		return
	}
	key, value, ok := strings.Cut(w, "=")
	if !ok {
		s.t.Fatalf("have: what is %q?", w)
	}
	h := &s.have
	switch key {
	case "sandbox":
		s.setSandbox(value)
	case "volumes":
		h.Volumes = map[string]state.Stage{"none": state.None, "present": state.Present, "dirty": state.Dirty}[value]
	case "cgroup":
		h.Cgroup = state.None
	case "written":
		h.Written = v1.PodPhase(value)
	case "busy":
		h.Running = append(h.Running, state.Task{Key: value, Since: s.now})
	case "idle":
		Finish(h, keyed(value), Result{}, s.now)
	case "broken":
		k, reason, _ := strings.Cut(value, ":")
		b := state.Broken{Count: 1, At: s.now, RetryAt: s.now.Add(10 * time.Second), Kind: fault.NotFound, Of: "i", Cause: state.Cause{Reason: reason, Message: "it is not there"}}
		h.Broken = state.Put(h.Broken, k, b)
	case "removed":
		if c := h.Newest(value); c != nil {
			remove(h, c.ID)
		}
	case "noimage":
		h.Images = state.Drop(h.Images, value)
	case "image":
		h.Images = state.Put(h.Images, value, state.Image{Name: "i", ID: "i"})
	default:
		s.setContainer(key, value)
	}
}

// keyed is an action of which only the key matters.
type keyed string

func (k keyed) Key() string { return string(k) }

func (s *stage) setSandbox(value string) {
	h := &s.have
	switch value {
	case "ready":
		n := uint32(0)
		if h.Sandbox.ID != "" {
			n = h.Sandbox.Attempt + 1
			h.Stale = append(h.Stale, h.Sandbox)
		}
		h.Sandbox, h.Stopped = state.Sandbox{ID: fmt.Sprint("s", n), Attempt: n, Ready: true, IPs: []string{"10.0.0.1"}}, false
		h.Volumes, h.Cgroup = state.Present, state.Dirty
	case "lost":
		h.Sandbox.Ready = false
	case "stopped":
		h.Sandbox.Ready, h.Stopped = false, true
	case "none":
		h.Sandbox, h.Stopped, h.Stale, h.Containers = state.Sandbox{}, false, nil, nil
	}
}

func (s *stage) setContainer(key, value string) {
	name, field, hasField := strings.Cut(key, ".")
	name, number, numbered := strings.Cut(name, "#")
	attempt := 0
	if numbered {
		attempt = int(s.number(number))
	} else if c := s.have.Newest(name); c != nil {
		attempt = c.Attempt
	}
	id := fmt.Sprintf("%s-%d", name, attempt)
	c := s.have.ByID(id)
	if c == nil {
		s.have.Containers = append(s.have.Containers, state.Container{
			Name: name, ID: id, Attempt: attempt, Sandbox: s.have.Sandbox.ID, Image: "i", CreatedAt: s.now,
		})
		c = s.have.ByID(id)
	}
	if hasField {
		s.setField(c, field, value)
		return
	}
	switch {
	case value == "created":
		c.Phase = state.Created
	case value == "running":
		c.Phase, c.StartedAt = state.Running, s.now
	case strings.HasPrefix(value, "exited("):
		c.Phase, c.Known, c.FinishedAt = state.Exited, true, s.now
		c.ExitCode = int32(s.number(strings.TrimSuffix(value[7:], ")")))
		c.Reason = map[bool]string{true: "Completed", false: "Error"}[c.ExitCode == 0]
	case value == "exited":
		c.Phase = state.Exited
	default:
		s.t.Fatalf("have: what is %s=%s?", key, value)
	}
}

func (s *stage) setField(c *state.Container, field, value string) {
	verdict := map[string]state.Verdict{"success": state.Success, "failure": state.Failure}[value]
	hook := map[string]state.Hook{"begun": state.HookBegun, "done": state.HookDone, "failed": state.HookFailed}[value]
	switch field {
	case "startup":
		c.Probe.Startup = verdict
	case "readiness":
		c.Probe.Readiness = verdict
	case "liveness":
		c.Probe.Liveness = verdict
	case "postStart":
		c.PostStart = hook
	case "preStop":
		c.PreStop = hook
	case "backoff":
		d, err := time.ParseDuration(value)
		if err != nil {
			s.t.Fatal(err)
		}
		c.Backoff = d
	default:
		s.t.Fatalf("have: what is the field %s?", field)
	}
}

// plan asks the planner, and records what it decided on the spot and about the end.
func (s *stage) plan() *Plan {
	var do []Action
	for {
		p := Pod(&s.want, &s.have, s.now)
		s.have.End, s.have.Status = p.End, p.Status
		for _, say := range p.Say {
			s.have.Said = state.Put(s.have.Said, say.Topic, say.Value)
		}
		quick := false
		for _, a := range p.Do {
			if Quick(a) {
				quick = true
				do = append(do, a)
				Begin(&s.have, a, s.now)
			}
		}
		if !quick {
			p.Do = append(do, p.Do...)
			return &p
		}
		if len(p.Say) > 0 {
			s.t.Fatal("an event together with a quick action: the scene would not show it")
		}
	}
}

func (s *stage) tell(p *Plan) []string {
	var words []string
	for _, a := range p.Do {
		words = append(words, describe(a))
	}
	line := "plan  " + strings.Join(words, ", ")
	if len(words) == 0 {
		line = "plan  nothing: " + p.Why
	}
	if !p.Wake.IsZero() {
		line += fmt.Sprintf("; again in %s", p.Wake.Sub(s.now))
	}
	if p.Over {
		line += "; over"
	}
	out := []string{line}
	for _, say := range p.Say {
		out = append(out, fmt.Sprintf("say   %s: %s", say.Reason, say.Message))
	}
	return append(out, "status "+summary(&p.Status))
}

func describe(a Action) string {
	switch t := a.(type) {
	case StartContainer:
		if t.ID != "" {
			return fmt.Sprintf("start %s#%d which exists", t.Container, t.Attempt)
		}
		if t.Target != "" {
			return fmt.Sprintf("start %s#%d in %s", t.Container, t.Attempt, t.Target)
		}
		if t.Backoff > 0 {
			return fmt.Sprintf("start %s#%d (next waits %s)", t.Container, t.Attempt, t.Backoff)
		}
		return fmt.Sprintf("start %s#%d", t.Container, t.Attempt)
	case StopContainer:
		return fmt.Sprintf("stop %s within %s", t.ID, t.Grace)
	case RunHook:
		return fmt.Sprintf("hook %s %s", t.Hook, t.ID)
	case SetProbe:
		return fmt.Sprintf("probe %s %s", t.ID, t.Kind)
	case RunSandbox:
		return fmt.Sprintf("sandbox#%d", t.Attempt)
	}
	return a.Key()
}

func summary(s *v1.PodStatus) string {
	words := []string{string(s.Phase)}
	if s.Reason != "" {
		words = append(words, s.Reason)
	}
	for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for _, c := range list {
			state := ""
			switch {
			case c.State.Waiting != nil:
				state = c.State.Waiting.Reason
			case c.State.Running != nil:
				state = "running"
			case c.State.Terminated != nil:
				state = fmt.Sprintf("exited(%d)", c.State.Terminated.ExitCode)
			}
			if c.Ready {
				state += ",ready"
			}
			if c.RestartCount > 0 {
				state += fmt.Sprintf(",restarts=%d", c.RestartCount)
			}
			if t := c.LastTerminationState.Terminated; t != nil {
				state += fmt.Sprintf(",last=%d", t.ExitCode)
			}
			words = append(words, c.Name+"="+state)
		}
	}
	for _, c := range s.Conditions {
		if c.Type == v1.PodReady {
			words = append(words, "Ready="+string(c.Status))
			if c.Message != "" {
				words = append(words, strconv.Quote(c.Message))
			}
		}
	}
	return strings.Join(words, " ")
}
