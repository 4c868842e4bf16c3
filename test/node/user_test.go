package node

import (
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/test/harness"
)

// What a person does at a node, one line each.

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// sh runs a script in the pod's first container, and returns what it printed, trimmed; it must succeed.
func sh(t *testing.T, n *harness.Node, pod, script string) string {
	t.Helper()
	out, code := n.Worknode("exec", pod, "--", "/bin/sh", "-c", script)
	if code != 0 {
		t.Errorf("in pod %s: %s: exit code %d, said %q", pod, script, code, out)
	}
	return strings.TrimSpace(out)
}

// try runs a script as sh does; it may end as it likes, and both its streams are returned as one text.
func try(t *testing.T, n *harness.Node, pod, script string) (string, int) {
	t.Helper()
	out, code := n.Worknode("exec", pod, "--", "/bin/sh", "-c", "exec 2>&1; "+script)
	return strings.TrimSpace(out), code
}

// kubectl runs upstream's kubectl, which must succeed.
func kubectl(t *testing.T, n *harness.Node, args ...string) string {
	t.Helper()
	out, errs, code := n.Kubectl(args...)
	if code != 0 {
		t.Errorf("kubectl %s: exit code %d: %s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// has checks that text has all the parts.
func has(t *testing.T, text string, all ...string) {
	t.Helper()
	for _, want := range all {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
}

// event waits for an event with all the parts in one line.
func event(t *testing.T, n *harness.Node, parts ...string) {
	t.Helper()
	n.Until("an event with "+strings.Join(parts, ", "), 15*time.Second, func() bool {
		out, _ := n.Worknode("events")
		return hasLine(out, parts)
	})
}

// logged waits for the pod's log to have a text.
func logged(t *testing.T, n *harness.Node, pod, text string) {
	t.Helper()
	n.Until("the log of "+pod+" to have "+text, 10*time.Second, func() bool {
		out, _ := n.Worknode("logs", pod)
		return strings.Contains(out, text)
	})
}

// container finds a container's status, of whatever kind of container.
func container(p *v1.Pod, name string) *v1.ContainerStatus {
	if p == nil {
		return nil
	}
	for _, all := range [][]v1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range all {
			if all[i].Name == name {
				return &all[i]
			}
		}
	}
	return nil
}

// restarted is a condition for WaitPod: the container called main was restarted at least so often and runs.
func restarted(times int32) func(*v1.Pod) bool {
	return func(p *v1.Pod) bool {
		c := container(p, "main")
		return c != nil && c.RestartCount >= times && c.State.Running != nil
	}
}
