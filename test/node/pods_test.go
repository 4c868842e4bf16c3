// Package node drives whole nodes, from the outside, on the real kernel.
package node

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"worknode/kube"
	"worknode/test/harness"
)

const image = "worknode.test/app:1"

// pod is a pod of one container that runs a shell script; options change it.
func pod(name, script string, options ...func(*v1.Pod)) *v1.Pod {
	p := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: v1.PodSpec{
			TerminationGracePeriodSeconds: new(int64),
			Containers:                    []v1.Container{{Name: "main", Image: image, Command: []string{"/bin/sh", "-c", script}}},
		},
	}
	*p.Spec.TerminationGracePeriodSeconds = 5
	for _, o := range options {
		o(p)
	}
	return p
}

func never(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever }

func limits(cpu, memory string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Resources.Limits = v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse(memory)}
	}
}

func start(t *testing.T, c harness.Config) *harness.Node {
	c.Images = append(c.Images, "app")
	return harness.Start(t, c)
}

func TestPodLivesAndLeavesNothing(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.Pods, pod("one", "exec /app wait"))
	p := n.WaitReady("one")
	if p.Status.PodIP == "" || p.Status.HostIP == "" || p.Status.StartTime == nil || p.Status.QOSClass != v1.PodQOSBestEffort {
		t.Errorf("status lacks something: %+v", p.Status)
	}
	st := p.Status.ContainerStatuses[0]
	if !strings.HasPrefix(st.ContainerID, "worknode://") || st.ImageID == "" || st.RestartCount != 0 || st.State.Running == nil {
		t.Errorf("container status: %+v", st)
	}
	if got := len(n.Cgroups("pod" + string(p.UID))); got == 0 {
		t.Error("the pod has no cgroup")
	}
	if len(n.Sandboxes()) != 1 {
		t.Errorf("sandboxes: %v", n.Sandboxes())
	}
	n.Delete(kube.Pods, "one")
	n.WaitPod("one", "gone", 15*time.Second, harness.Gone)
	n.Until("the pod's cgroup to go", 5*time.Second, func() bool { return len(n.Cgroups("pod"+string(p.UID))) == 0 })
	if _, err := os.Stat(filepath.Join(n.Place.Kubelet(), "pods", string(p.UID))); err == nil {
		t.Error("the pod's folder is still there")
	}
	if left := n.Sandboxes(); len(left) > 0 {
		t.Errorf("namespaces stay pinned: %v", left)
	}
}

func TestJobEndsWithItsOwnExitCode(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.Pods, pod("good", "echo hello; exit 0", never))
	n.Create(kube.Pods, pod("bad", "exit 7", never))
	p := n.WaitPod("good", "succeeded", 20*time.Second, harness.Phase(v1.PodSucceeded))
	if end := p.Status.ContainerStatuses[0].State.Terminated; end == nil || end.Reason != "Completed" || end.ExitCode != 0 || end.FinishedAt.Before(&end.StartedAt) {
		t.Errorf("terminated state: %+v", end)
	}
	p = n.WaitPod("bad", "failed", 20*time.Second, harness.Phase(v1.PodFailed))
	if end := p.Status.ContainerStatuses[0].State.Terminated; end == nil || end.Reason != "Error" || end.ExitCode != 7 {
		t.Errorf("terminated state: %+v", end)
	}
	if out, code := n.Worknode("logs", "good"); out != "hello\n" || code != 0 {
		t.Errorf("logs: %q, exit code %d", out, code)
	}
	n.Delete(kube.Pods, "good")
	n.WaitPod("good", "gone", 10*time.Second, harness.Gone)
}

// A container that ends before anybody heard of its start ends all the same.
func TestPodsThatEndAtOnce(t *testing.T) {
	n := start(t, harness.Config{})
	const many = 40
	for i := range many {
		n.Create(kube.Pods, pod(fmt.Sprintf("brief-%d", i), "", never, func(p *v1.Pod) {
			p.Spec.Containers[0].Command = []string{"/app", "exit", fmt.Sprint(i + 1)}
		}))
	}
	for i := range many {
		p := n.WaitPod(fmt.Sprintf("brief-%d", i), "failed", 20*time.Second, harness.Phase(v1.PodFailed))
		if end := p.Status.ContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != int32(i+1) {
			t.Errorf("pod %d: %+v", i, end)
		}
	}
}

// The first restart comes at once, the second ten seconds after the second crash: upstream's back-off.
func TestCrashLoopBacksOff(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.Pods, pod("crash", "echo run; exit 1"))
	restarts := func(want int32) func(*v1.Pod) bool {
		return func(p *v1.Pod) bool {
			return p != nil && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount >= want
		}
	}
	n.WaitPod("crash", "restarted once", 5*time.Second, restarts(1))
	first := time.Now()
	p := n.WaitPod("crash", "in back-off", 5*time.Second, func(p *v1.Pod) bool {
		w := p.Status.ContainerStatuses[0].State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff"
	})
	if got := p.Status.ContainerStatuses[0].State.Waiting.Message; !strings.HasPrefix(got, "back-off 10s restarting failed container=main pod=crash_default") {
		t.Errorf("message: %q", got)
	}
	if last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 1 {
		t.Errorf("last state: %+v", last)
	}
	if p.Status.Phase != v1.PodRunning {
		t.Errorf("phase %s: a crash-looping pod that restarts is Running", p.Status.Phase)
	}
	n.WaitPod("crash", "restarted twice", 15*time.Second, restarts(2))
	if waited := time.Since(first); waited < 9*time.Second && !harness.Emulated() {
		t.Errorf("second restart after %v, want 10 s", waited)
	}
}

func TestOOMIsTold(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.Pods, pod("hungry", "exec /app eat 256", never, limits("1", "48Mi")))
	p := n.WaitPod("hungry", "failed", 20*time.Second, harness.Phase(v1.PodFailed))
	if end := p.Status.ContainerStatuses[0].State.Terminated; end == nil || end.Reason != "OOMKilled" || end.ExitCode != 137 {
		t.Errorf("terminated state: %+v", end)
	}
}

func TestLimitsAreInTheCgroups(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.Pods, pod("limited", "exec /app wait", limits("250m", "64Mi")))
	p := n.WaitReady("limited")
	if p.Status.QOSClass != v1.PodQOSGuaranteed {
		t.Errorf("class %s, want Guaranteed", p.Status.QOSClass)
	}
	_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
	found := map[string]string{}
	for _, where := range []string{"pod" + string(p.UID), id} {
		for _, group := range n.Cgroups(where) {
			if strings.Contains(group, id) != (where == id) {
				continue
			}
			for _, file := range []string{"memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us"} {
				if data, err := os.ReadFile(group + "/" + file); err == nil {
					found[where+" "+file] = strings.TrimSpace(string(data))
				}
			}
		}
		memory := found[where+" memory.max"] + found[where+" memory.limit_in_bytes"]
		cpu := found[where+" cpu.max"] + found[where+" cpu.cfs_quota_us"]
		if memory != "67108864" || (cpu != "25000 100000" && cpu != "25000") {
			t.Errorf("%s: memory %q, cpu %q; all found: %v", where, memory, cpu, found)
		}
	}
}

func TestInitContainersRunFirstAndInOrder(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.Pods, pod("ordered", "cat /data/log; exec /app wait", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
		mount := []v1.VolumeMount{{Name: "data", MountPath: "/data"}}
		p.Spec.Containers[0].VolumeMounts = mount
		for _, name := range []string{"first", "second"} {
			p.Spec.InitContainers = append(p.Spec.InitContainers, v1.Container{Name: name, Image: image, VolumeMounts: mount, Command: []string{"/bin/sh", "-c", "echo " + name + " >> /data/log"}})
		}
	}))
	n.WaitReady("ordered")
	n.Until("the log", 5*time.Second, func() bool {
		out, _ := n.Worknode("logs", "ordered", "-c", "main")
		return strings.HasPrefix(out, "first\nsecond\n")
	})
}

func TestEnvironmentAndFilesOfTheConfiguration(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.ConfigMaps, &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"colour": "green"}})
	n.Create(kube.Secrets, &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "password"}, Data: map[string][]byte{"word": []byte("s3cret")}})
	n.Create(kube.Pods, pod("configured", `echo "$COLOUR $WORD $NAME $CPU"; echo "$(cat /etc/settings/colour /etc/password/word)"; exec /app wait > /dev/null`, limits("2", "64Mi"), func(p *v1.Pod) {
		c := &p.Spec.Containers[0]
		c.Env = []v1.EnvVar{
			{Name: "COLOUR", ValueFrom: &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: v1.LocalObjectReference{Name: "settings"}, Key: "colour"}}},
			{Name: "WORD", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: v1.LocalObjectReference{Name: "password"}, Key: "word"}}},
			{Name: "NAME", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
			{Name: "CPU", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "limits.cpu"}}},
		}
		p.Spec.Volumes = []v1.Volume{
			{Name: "settings", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "settings"}}}},
			{Name: "password", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "password"}}},
		}
		c.VolumeMounts = []v1.VolumeMount{{Name: "settings", MountPath: "/etc/settings"}, {Name: "password", MountPath: "/etc/password"}}
	}))
	n.WaitReady("configured")
	n.Until("the output", 5*time.Second, func() bool {
		out, _ := n.Worknode("logs", "configured")
		return out == "green s3cret configured 2\ngreens3cret\n"
	})
	ctx, end := context.WithTimeout(context.Background(), harness.Slow(10*time.Second))
	defer end()
	var cm v1.ConfigMap
	if err := n.Kube.Get(ctx, kube.ConfigMaps, "default", "settings", &cm); err != nil {
		t.Fatal(err)
	}
	cm.Data["colour"] = "blue"
	if err := n.Kube.Update(ctx, kube.ConfigMaps, "default", "settings", &cm, &cm); err != nil {
		t.Fatal(err)
	}
	n.Until("the changed ConfigMap to reach the file", 5*time.Second, func() bool {
		out, code := n.Worknode("exec", "configured", "--", "cat", "/etc/settings/colour")
		return code == 0 && out == "blue"
	})
}

func TestLivenessRestartsAndStartupProtects(t *testing.T) {
	n := start(t, harness.Config{})
	probe := func(cmd string) *v1.Probe {
		return &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"/bin/sh", "-c", cmd}}}, PeriodSeconds: 1, FailureThreshold: 1, TimeoutSeconds: 5}
	}
	n.Create(kube.Pods, pod("sick", "touch /tmp/well; exec /app wait", func(p *v1.Pod) {
		p.Spec.Containers[0].LivenessProbe = probe("test -e /tmp/well")
		p.Spec.Containers[0].StartupProbe = probe("true")
	}))
	p := n.WaitReady("sick")
	if p.Status.ContainerStatuses[0].Started == nil || !*p.Status.ContainerStatuses[0].Started {
		t.Error("not marked as started after its startup probe")
	}
	if _, code := n.Worknode("exec", "sick", "--", "rm", "/tmp/well"); code != 0 {
		t.Fatal("exec failed")
	}
	n.WaitPod("sick", "restarted", 20*time.Second, func(p *v1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == 1 })
	out, _ := n.Worknode("events")
	if !strings.Contains(out, "Liveness probe failed") || !strings.Contains(out, "Killing") {
		t.Errorf("events do not tell why:\n%s", out)
	}
}

func TestTerminationIsGraceful(t *testing.T) {
	n := start(t, harness.Config{})
	n.Create(kube.Pods, pod("polite", `trap 'echo bye; exit 0' TERM; echo armed; while :; do sleep 0.1; done`))
	n.Create(kube.Pods, pod("stubborn", `trap '' TERM; echo armed; while :; do sleep 0.1; done`, func(p *v1.Pod) { *p.Spec.TerminationGracePeriodSeconds = 2 }))
	n.WaitReady("polite")
	n.WaitReady("stubborn")
	logged(t, n, "polite", "armed") // the kernel drops signals that a first process has no handler for
	logged(t, n, "stubborn", "armed")
	for _, name := range []string{"polite", "stubborn"} {
		began := time.Now()
		n.Delete(kube.Pods, name)
		n.WaitPod(name, "gone", 15*time.Second, harness.Gone)
		took := time.Since(began)
		if harness.Emulated() {
			continue
		}
		if name == "polite" && took > 1500*time.Millisecond {
			t.Errorf("a pod that obeys SIGTERM took %v", took)
		}
		if name == "stubborn" && (took < 1900*time.Millisecond || took > 4*time.Second) {
			t.Errorf("a pod that ignores SIGTERM took %v, want its grace of 2 s", took)
		}
	}
}

// A replica that is not ready gets no traffic, and gets it again when it is.
func TestReadinessGatesTraffic(t *testing.T) {
	n := start(t, harness.Config{Publish: []int{30080}})
	for i := range 2 {
		n.Create(kube.Pods, pod(fmt.Sprintf("web-%d", i), "exec /app serve", func(p *v1.Pod) {
			p.Labels["app"] = "web"
			p.Spec.Containers[0].ReadinessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(8080)}}, PeriodSeconds: 1, FailureThreshold: 1}
		}))
	}
	n.Create(kube.Services, &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: v1.ServiceSpec{
		Type: v1.ServiceTypeNodePort, Selector: map[string]string{"app": "web"},
		Ports: []v1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080), NodePort: 30080}},
	}})
	n.WaitReady("web-0")
	n.WaitReady("web-1")
	answers := func() map[string]int {
		got := map[string]int{}
		for range 40 {
			host, err := get("http://" + n.Port(30080) + "/")
			if err != nil {
				host = "error"
			}
			got[strings.TrimSpace(host)]++
		}
		return got
	}
	n.Until("both replicas to answer", 5*time.Second, func() bool { a := answers(); return a["web-0"] > 0 && a["web-1"] > 0 && a["error"] == 0 })
	if _, code := n.Worknode("exec", "web-0", "--", "touch", "/tmp/notready"); code != 0 {
		t.Fatal("exec failed")
	}
	n.WaitPod("web-0", "not ready", 10*time.Second, func(p *v1.Pod) bool { return !harness.Ready(p) })
	n.Until("the proxy to follow", 2*time.Second, func() bool { return answers()["web-0"] == 0 })
	if a := answers(); a["web-0"] != 0 || a["web-1"] != 40 {
		t.Errorf("answers while web-0 is not ready: %v", a)
	}
	if _, code := n.Worknode("exec", "web-0", "--", "rm", "/tmp/notready"); code != 0 {
		t.Fatal("exec failed")
	}
	n.WaitReady("web-0")
	n.Until("web-0 to answer again", 5*time.Second, func() bool { return answers()["web-0"] > 0 })
}

func get(url string) (string, error) {
	client := &http.Client{Timeout: harness.Slow(2 * time.Second), Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return string(body), err
}
