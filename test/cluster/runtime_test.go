package cluster

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/test/cluster/bed"
	"worknode/test/harness"
)

const workers = `
apiVersion: v1
kind: Pod
metadata: {name: keeps}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: worknode.test/app:1
    args: [serve]
    readinessProbe: {exec: {command: [/bin/true]}, periodSeconds: 1}
    livenessProbe: {exec: {command: [/bin/sh, -c, "! test -e /sick"]}, periodSeconds: 1, failureThreshold: 1}
  - name: talks
    image: worknode.test/app:1
    args: [lines, "100000000", "1000"]
---
apiVersion: v1
kind: Pod
metadata: {name: crashes}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: worknode.test/app:1, args: [exit, "3"]}
---
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  shareProcessNamespace: true
  initContainers:
  - {name: first, image: worknode.test/app:1, command: [/bin/sh, -c, "echo first > /shared/file"], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - {name: main, image: worknode.test/app:1, command: [/bin/sh, -c, "cat /shared/file; exit 7"], volumeMounts: [{name: shared, mountPath: /shared}]}
  volumes: [{name: shared, emptyDir: {medium: Memory}}]
`

// container finds a container's status by name.
func container(p *v1.Pod, name string) v1.ContainerStatus {
	for _, s := range p.Status.ContainerStatuses {
		if s.Name == name {
			return s
		}
	}
	return v1.ContainerStatus{}
}

// Upstream's kubelet finds in our runtime all that it asks of one: the cgroup driver, probes by exec, restarts after
// crashes, logs, removal; and it notices nothing when runtime and monitor are killed beneath it. Issue 4.
func TestUpstreamKubeletOnOurRuntime(t *testing.T) {
	c := bed.Shared(t)
	n := c.Node(t, bed.NodeConfig{Kubelet: bed.Upstream})
	c.Apply(t, workers)
	kept := c.WaitPod(t, "default/keeps", "Ready by its exec probe", 60*time.Second, harness.Ready)
	ended := c.WaitPod(t, "default/ends", "failed", 60*time.Second, harness.Phase(v1.PodFailed))
	if end := container(ended, "main").State.Terminated; end == nil || end.ExitCode != 7 || end.Reason != "Error" {
		t.Errorf("the end of the pod that ends: %+v", end)
	}
	if out := c.Must(t, "logs", "ends"); out != "first\n" {
		t.Errorf("its log: %q", out)
	}
	c.WaitPod(t, "default/crashes", "restarted", 60*time.Second, func(p *v1.Pod) bool {
		s := container(p, "main")
		return s.RestartCount > 0 && s.LastTerminationState.Terminated != nil && s.LastTerminationState.Terminated.ExitCode == 3
	})
	said, err := os.ReadFile(n.Kubelet.Log)
	if err != nil || !strings.Contains(string(said), `Using cgroup driver setting received from the CRI runtime" cgroupDriver="cgroupfs"`) {
		t.Errorf("the kubelet does not take the runtime's cgroup driver: %v", err)
	}

	if err := n.Runtime.Restart(); err != nil {
		t.Fatal(err)
	}
	if out := c.Must(t, "exec", "keeps", "-c", "main", "--", "/bin/sh", "-c", "echo at once"); out != "at once\n" {
		t.Errorf("exec after the runtime was killed: %q", out)
	}
	now := c.WaitPod(t, "default/keeps", "Ready", 60*time.Second, harness.Ready)
	for _, name := range []string{"main", "talks"} {
		if a, b := container(kept, name), container(now, name); a.ContainerID != b.ContainerID || b.RestartCount != 0 {
			t.Errorf("%s: %s became %s, %d restarts", name, a.ContainerID, b.ContainerID, b.RestartCount)
		}
	}
	at := 0
	for line := range strings.Lines(c.Must(t, "logs", "keeps", "-c", "talks")) {
		if at++; line != "line "+strconv.Itoa(at)+"\n" {
			t.Fatalf("line %d of the log is %q", at, line)
		}
	}
	if at < 1000 {
		t.Errorf("only %d lines", at)
	}
	c.Must(t, "exec", "keeps", "-c", "main", "--", "/bin/sh", "-c", "echo > /sick")
	c.WaitPod(t, "default/keeps", "restarted by its liveness probe", 60*time.Second, func(p *v1.Pod) bool {
		s := container(p, "main")
		return s.RestartCount == 1 && s.State.Running != nil
	})
	for _, name := range []string{"keeps", "crashes", "ends"} {
		c.Must(t, "delete", "pod", name, "--wait=false")
		c.WaitPod(t, "default/"+name, "gone", 60*time.Second, harness.Gone)
	}
}
