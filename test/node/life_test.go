package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/kube"
	"worknode/test/harness"
)

// A sidecar starts before the main container and ends after it, and a job ends although its sidecar would not.
func TestSidecarOutlivesMain(t *testing.T) {
	dir := t.TempDir()
	const spec = `
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  restartPolicy: POLICY
  terminationGracePeriodSeconds: 10
  initContainers:
  - name: before
    image: worknode.test/app:1
    command: [/bin/sh, -c, "echo before >> /h/NAME"]
    volumeMounts: [{name: h, mountPath: /h}]
  - name: sidecar
    image: worknode.test/app:1
    restartPolicy: Always
    command: [/bin/sh, -c, "echo sidecar up >> /h/NAME; touch /tmp/up; trap 'echo sidecar down >> /h/NAME; exit' TERM; while :; do sleep 0.05; done"]
    startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1}
    volumeMounts: [{name: h, mountPath: /h}]
  - name: after
    image: worknode.test/app:1
    command: [/bin/sh, -c, "echo after >> /h/NAME"]
    volumeMounts: [{name: h, mountPath: /h}]
  containers:
  - name: main
    image: worknode.test/app:1
    command: [/bin/sh, -c, "echo main up >> /h/NAME; SCRIPT"]
    volumeMounts: [{name: h, mountPath: /h}]
  volumes: [{name: h, hostPath: {path: DIR}}]
`
	make := func(name, policy, script string) string {
		return strings.NewReplacer("NAME", name, "POLICY", policy, "SCRIPT", script, "DIR", dir).Replace(spec)
	}
	n := start(t, harness.Config{Manifests: map[string]string{
		"job.yaml":   make("job", "Never", "sleep 0.5; echo main down >> /h/job"),
		"serve.yaml": make("serve", "Always", "trap 'sleep 0.3; echo main down >> /h/serve; exit' TERM; while :; do sleep 0.05; done"),
	}})
	p := n.WaitPod("job", "succeeded", 20*time.Second, harness.Phase(v1.PodSucceeded))
	if c := container(p, "sidecar"); c.State.Terminated == nil {
		t.Errorf("the sidecar of an ended job: %+v", c.State)
	}
	p = n.WaitReady("serve")
	if c := container(p, "sidecar"); c.State.Running == nil || c.Started == nil || !*c.Started || !c.Ready {
		t.Errorf("the sidecar: %+v", c)
	}
	if err := os.Remove(n.Dir + "/serve.yaml"); err != nil {
		t.Fatal(err)
	}
	n.WaitPod("serve", "gone", 15*time.Second, harness.Gone)
	for _, name := range []string{"job", "serve"} {
		data, _ := os.ReadFile(dir + "/" + name)
		if want := "before\nsidecar up\nafter\nmain up\nmain down\nsidecar down\n"; string(data) != want {
			t.Errorf("%s happened in this order:\n%swant:\n%s", name, data, want)
		}
	}
}

func TestHooksFrameTheContainer(t *testing.T) {
	dir := t.TempDir()
	n := start(t, harness.Config{Manifests: map[string]string{"a.yaml": strings.ReplaceAll(`
apiVersion: v1
kind: Pod
metadata: {name: hooks}
spec:
  terminationGracePeriodSeconds: 10
  containers:
  - name: main
    image: worknode.test/app:1
    command: [/bin/sh, -c, "trap 'echo term >> /h/log; exit' TERM; while :; do sleep 0.05; done"]
    lifecycle:
      postStart: {exec: {command: [/bin/sh, -c, "echo started >> /h/log"]}}
      preStop: {exec: {command: [/bin/sh, -c, "sleep 0.3; echo stopping >> /h/log"]}}
    volumeMounts: [{name: h, mountPath: /h}]
  volumes: [{name: h, hostPath: {path: DIR}}]
---
apiVersion: v1
kind: Pod
metadata: {name: badhook}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: worknode.test/app:1
    command: [/app, wait]
    lifecycle: {postStart: {exec: {command: [/bin/sh, -c, "echo no luck; exit 3"]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: sleeper}
spec:
  terminationGracePeriodSeconds: 10
  containers:
  - name: main
    image: worknode.test/app:1
    command: [/app, serve]
    lifecycle: {preStop: {sleep: {seconds: 1}}}
`, "DIR", dir)}})
	n.WaitReady("hooks")
	n.WaitReady("sleeper")
	began := time.Now()
	for _, name := range []string{"a.yaml"} {
		event(t, n, "FailedPostStartHook", "badhook")
		n.WaitPod("badhook", "restarted for its hook", 10*time.Second, func(p *v1.Pod) bool { return container(p, "main") != nil && container(p, "main").RestartCount > 0 })
		began = time.Now()
		if err := os.Remove(filepath.Join(n.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	n.WaitPod("sleeper", "gone", 15*time.Second, harness.Gone)
	if took := time.Since(began); took < time.Second {
		t.Errorf("gone after %v, the hook sleeps a second", took)
	}
	n.WaitPod("hooks", "gone", 15*time.Second, harness.Gone)
	if data, _ := os.ReadFile(dir + "/log"); string(data) != "started\nstopping\nterm\n" {
		t.Errorf("happened in this order:\n%s", data)
	}
}

func TestDeadlineEndsThePod(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.Pods, pod("late", "exec /app wait", never, func(p *v1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(2)) }))
	p := n.WaitPod("late", "failed", 10*time.Second, harness.Phase(v1.PodFailed))
	if p.Status.Reason != "DeadlineExceeded" {
		t.Errorf("reason %q, message %q", p.Status.Reason, p.Status.Message)
	}
	n.WaitPod("late", "ended", 10*time.Second, func(p *v1.Pod) bool { return container(p, "main").State.Terminated != nil })
}

func TestOnFailureRestartsUntilSuccess(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.Pods, pod("again", "test -e /data/once && exit 0; touch /data/once; echo why not | tee /dev/termination-log; exit 4", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyOnFailure
		p.Spec.Volumes = []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "data", MountPath: "/data"}}
	}))
	p := n.WaitPod("again", "succeeded", 15*time.Second, harness.Phase(v1.PodSucceeded))
	c := container(p, "main")
	if last := c.LastTerminationState.Terminated; c.RestartCount != 1 || last == nil || last.ExitCode != 4 || last.Message != "why not\n" {
		t.Errorf("status: %+v", c)
	}
	if out := kubectl(t, n, "logs", "again", "--previous"); out != "why not\n" {
		t.Errorf("log of the run before: %q", out)
	}
	n.Create(kube.Pods, pod("tail", "echo last words; exit 5", never, func(p *v1.Pod) {
		p.Spec.Containers[0].TerminationMessagePolicy = v1.TerminationMessageFallbackToLogsOnError
	}))
	p = n.WaitPod("tail", "failed", 15*time.Second, harness.Phase(v1.PodFailed))
	if end := container(p, "main").State.Terminated; end.Message != "last words\n" {
		t.Errorf("message from the log: %q", end.Message)
	}
}

// Each handler of each kind of probe: ready when the program is, restarted when it fails.
func TestProbesOfEveryKind(t *testing.T) {
	n := start(t, harness.Config{})
	handlers := map[string]string{
		"http": "httpGet: {path: /ready, port: web}",
		"tcp":  "tcpSocket: {port: web}",
		"grpc": "grpc: {port: 8080}",
	}
	for name, handler := range handlers {
		verb := "serve"
		if name == "grpc" {
			verb = "grpc"
		}
		n.Write(name+".yaml", fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: worknode.test/app:1
    command: [/bin/sh, -c, "/bin/sleep 0.3; exec /app %[2]s 8080"]
    ports: [{name: web, containerPort: 8080}]
    startupProbe: {%[3]s, periodSeconds: 1, failureThreshold: 10}
    readinessProbe: {%[3]s, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {%[3]s, periodSeconds: 1, failureThreshold: 3}
`, name, verb, handler))
	}
	for name := range handlers {
		if p := n.WaitReady(name); container(p, "main").RestartCount != 0 {
			t.Errorf("%s was restarted while it started", name)
		}
	}
	for _, name := range []string{"http", "grpc"} {
		sh(t, n, name, "touch /tmp/notready")
	}
	for _, name := range []string{"http", "grpc"} {
		n.WaitPod(name, "not ready", 5*time.Second, func(p *v1.Pod) bool { return !harness.Ready(p) })
		n.WaitPod(name, "restarted", 10*time.Second, restarted(1))
		event(t, n, "Unhealthy", name, "Liveness probe failed")
		event(t, n, "Unhealthy", name, "Readiness probe failed")
	}
	if c := container(n.WaitReady("tcp"), "main"); c.RestartCount != 0 {
		t.Error("tcp was restarted")
	}
}

// What a pod asks for its processes is what the kernel shows.
func TestSecurityIsVisibleInTheProcess(t *testing.T) {
	n := start(t, harness.Config{Manifests: map[string]string{"a.yaml": `
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "worknode.test/app:1", command: [/app, wait]}]
---
apiVersion: v1
kind: Pod
metadata: {name: strict}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1234, runAsGroup: 2345, supplementalGroups: [3456], runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}, sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "99"}]}
  containers:
  - name: main
    image: worknode.test/app:1
    command: [/app, wait]
    workingDir: /tmp
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Pod
metadata: {name: bind}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: worknode.test/app:1
    command: [/app, wait]
    securityContext: {capabilities: {drop: [ALL], add: [NET_BIND_SERVICE, CHOWN]}}
---
apiVersion: v1
kind: Pod
metadata: {name: mighty}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "worknode.test/app:1", command: [/app, wait], securityContext: {privileged: true}}]
---
apiVersion: v1
kind: Pod
metadata: {name: liar}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsNonRoot: true}
  containers: [{name: main, image: "worknode.test/app:1", command: [/app, wait]}]
---
apiVersion: v1
kind: Pod
metadata: {name: family}
spec:
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "worknode.test/app:1", command: [/app, wait]}
  - {name: other, image: "worknode.test/app:1", command: [/app, serve]}
`}})
	for _, c := range []struct{ pod, what, script, want string }{
		{"plain", "default capabilities", "grep CapEff /proc/1/status", "CapEff:\t00000000a80425fb"},
		{"plain", "the default seccomp profile", "grep Seccomp: /proc/1/status", "Seccomp:\t2"},
		{"mighty", "no seccomp for the privileged", "grep Seccomp: /proc/1/status", "Seccomp:\t0"},
		{"plain", "masked", "cat /proc/keys /proc/timer_list 2>/dev/null | wc -c", "0"},
		{"plain", "own pid namespace", "cat /proc/1/comm", "app"},
		{"plain", "writable root", "echo x > /new; cat /new", "x"},
		{"plain", "shared memory", "df -P /dev/shm | awk 'NR==2 {print $2}'", "65536"},
		{"strict", "user", "grep -E '^(Uid|Gid)' /proc/1/status", "Uid:\t1234\t1234\t1234\t1234\nGid:\t2345\t2345\t2345\t2345"},
		{"strict", "groups", "id -G", "2345 3456"},
		{"strict", "capabilities", "grep -E 'Cap(Eff|Bnd)' /proc/1/status", "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000"},
		{"strict", "no new privileges", "grep NoNewPrivs /proc/1/status", "NoNewPrivs:\t1"},
		{"strict", "seccomp", "grep Seccomp: /proc/1/status", "Seccomp:\t2"},
		{"strict", "seccomp in exec", "grep Seccomp: /proc/self/status", "Seccomp:\t2"},
		{"strict", "read-only root", "(echo x > /tmp/new) 2>/dev/null || echo refused", "refused"},
		{"strict", "working folder", "readlink /proc/1/cwd", "/tmp"},
		{"strict", "sysctl", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "99"},
		{"bind", "added capabilities", "grep CapEff /proc/1/status", "CapEff:\t0000000000000401"},
		{"mighty", "privileged sees devices", "test -e /dev/kmsg && echo yes", "yes"},
		{"mighty", "privileged may write sysctls", "test -w /proc/sys/kernel/hostname && mount | grep -c 'proc on /proc/sys'", "0"},
		{"family", "sees its neighbours", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'app serve'", "1"},
	} {
		n.WaitReady(c.pod)
		if got, _ := try(t, n, c.pod, c.script); got != c.want {
			t.Errorf("%s: %s: got %q, want %q", c.pod, c.what, got, c.want)
		}
	}
	p := n.WaitPod("liar", "refused", 10*time.Second, func(p *v1.Pod) bool {
		c := container(p, "main")
		return c != nil && c.State.Waiting != nil && c.State.Waiting.Reason == "CreateContainerConfigError"
	})
	has(t, container(p, "main").State.Waiting.Message, "runAsNonRoot", "root")
}

// What a container wrote besides its volumes goes with it.
func TestContainerStorageGoesWithThePod(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.Pods, pod("writer", "dd if=/dev/zero of=/big bs=1M count=32 2>/dev/null; echo done; exec /app wait"))
	n.WaitReady("writer")
	logged(t, n, "writer", "done")
	find := func() (big []string) {
		for _, top := range []string{n.Place.State, n.Place.Run} {
			filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.Name() == "big" {
					big = append(big, path)
				}
				return nil
			})
		}
		return big
	}
	if len(find()) == 0 {
		t.Error("the file is nowhere below the node's folders")
	}
	n.Delete(kube.Pods, "writer")
	n.WaitPod("writer", "gone", 10*time.Second, harness.Gone)
	n.Until("the file to go", 5*time.Second, func() bool { return len(find()) == 0 })
}
