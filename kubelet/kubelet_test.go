package kubelet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kernel/cgroup"
	"worknode/kubelet/config"
)

// rig is a kubelet between a fake API server and a fake runtime, on real files and cgroups. Its kubelet can be killed
// and started again.
type rig struct {
	t    *testing.T
	api  *fakeAPI
	cri  *fakeCRI
	o    Options
	stop func()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes cgroups and mounts: run it as root")
	}
	slog.SetLogLoggerLevel(slog.LevelWarn)
	dir := t.TempDir()
	g := &rig{t: t}
	var kubeconfig string
	g.api, kubeconfig = startFakeAPI(t)
	var socket string
	g.cri, socket = startFakeCRI(t)
	cert, key := selfSigned(t, dir)
	group := fmt.Sprintf("/wn-test-kubelet-%d", os.Getpid())
	settings, err := config.Load(config.Sources{Flags: map[string]any{
		"containerRuntimeEndpoint": socket, "podLogsDir": filepath.Join(dir, "logs"), "cgroupRoot": group, "address": "127.0.0.1", "healthzPort": 0,
		"tlsCertFile": cert, "tlsPrivateKeyFile": key, "authentication": map[string]any{"x509": map[string]any{"clientCAFile": cert}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	settings.Port = 0 // a free one
	g.o = Options{
		Config: settings, Kubeconfig: kubeconfig, NodeName: "n", NodeIPs: []string{"192.0.2.1"},
		RootDir: filepath.Join(dir, "root"), LinkDir: filepath.Join(dir, "links"),
	}
	t.Cleanup(func() {
		g.kill()
		tree, err := cgroup.Open()
		if err == nil {
			err = tree.Remove(group)
		}
		if err != nil {
			t.Errorf("cgroups of the test stay: %v", err)
		}
	})
	g.start()
	return g
}

func selfSigned(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "n"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: kb}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func (g *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, g.o) }()
	g.stop = func() {
		cancel()
		select {
		case err := <-done:
			if err != nil && ctx.Err() == nil {
				g.t.Errorf("kubelet: %v", err)
			}
		case <-time.After(20 * time.Second):
			g.t.Error("the kubelet does not stop")
		}
	}
}

func (g *rig) kill() {
	if g.stop != nil {
		g.stop()
		g.stop = nil
	}
}

// until waits until ok holds, and fails with what was missing.
func (g *rig) until(what string, ok func() bool) {
	g.t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			p := g.api.get("p")
			if p != nil {
				g.t.Fatalf("waited for: %s; status %+v", what, p.Status)
			}
			g.t.Fatalf("waited for: %s; the pod is gone", what)
		}
	}
}

func (g *rig) ready(name string) bool {
	p := g.api.get(name)
	return p != nil && condition(p, v1.PodReady) == v1.ConditionTrue
}

func condition(p *v1.Pod, kind v1.PodConditionType) v1.ConditionStatus {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return ""
}

func simplePod(name string) *v1.Pod {
	grace := int64(30)
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name), Generation: 1, CreationTimestamp: metav1.Now()},
		Spec: v1.PodSpec{
			NodeName: "n", RestartPolicy: v1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace,
			Containers: []v1.Container{{Name: "web", Image: "img", ImagePullPolicy: v1.PullIfNotPresent, TerminationMessagePath: "/dev/termination-log"}},
		},
		Status: v1.PodStatus{Phase: v1.PodPending, QOSClass: v1.PodQOSBestEffort, Conditions: []v1.PodCondition{{Type: "example.com/other", Status: v1.ConditionTrue}}},
	}
}

func (f *fakeCRI) running(name string) *fakeContainer {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if c.Metadata.Name == name && c.State == cri.ContainerState_CONTAINER_RUNNING {
			return c
		}
	}
	return nil
}

func (f *fakeCRI) end(c *fakeContainer, code int32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.exit(c, code)
}

func TestPodComesUpAndLeavesNothing(t *testing.T) {
	g := newRig(t)
	g.api.put(simplePod("p"))
	g.until("ready", func() bool { return g.ready("p") })
	p := g.api.get("p")
	cs := p.Status.ContainerStatuses[0]
	if p.Status.Phase != v1.PodRunning || cs.State.Running == nil || !cs.Ready || cs.RestartCount != 0 || !strings.HasPrefix(cs.ContainerID, "fake://ctr") {
		t.Errorf("status of a ready pod: %+v", p.Status)
	}
	if p.Status.PodIP != "10.1.0.1" || p.Status.HostIP != "192.0.2.1" || len(p.Status.PodIPs) != 1 {
		t.Errorf("addresses: %+v", p.Status)
	}
	if condition(p, "example.com/other") != v1.ConditionTrue {
		t.Error("a condition of somebody else was lost")
	}
	g.api.remove("p", 30)
	g.until("the object to go", func() bool { return g.api.get("p") == nil })
	g.until("sandbox and containers to go", func() bool {
		g.cri.mu.Lock()
		defer g.cri.mu.Unlock()
		return len(g.cri.boxes)+len(g.cri.containers) == 0
	})
	phases := []v1.PodPhase{}
	for _, p := range g.api.history {
		if n := len(phases); n == 0 || phases[n-1] != p.Status.Phase {
			phases = append(phases, p.Status.Phase)
		}
	}
	if fmt.Sprint(phases) != "[Pending Running Failed]" {
		t.Errorf("phases %v", phases)
	}
	for _, left := range []string{"pods/uid-p", "did/uid-p", "objects/uid-p"} {
		if _, err := os.Stat(filepath.Join(g.o.RootDir, left)); err == nil {
			t.Errorf("%s is left", left)
		}
	}
}

// A kubelet that is killed and comes back restarts nothing and does not take the pod out of service (issue 3).
func TestKilledKubeletDisturbsNothing(t *testing.T) {
	g := newRig(t)
	pod := simplePod("p")
	pod.Spec.Containers[0].ReadinessProbe = &v1.Probe{
		ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"true"}}}, PeriodSeconds: 1, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3,
	}
	g.api.put(pod)
	g.until("ready", func() bool { return g.ready("p") })
	before := len(g.api.history)
	for range 3 {
		g.kill()
		g.start()
		execs := func() int { g.cri.mu.Lock(); defer g.cri.mu.Unlock(); return len(g.cri.execs) }
		n := execs()
		g.until("the probe to run again", func() bool { return execs() > n })
	}
	g.api.mu.Lock()
	defer g.api.mu.Unlock()
	for _, p := range g.api.history[before:] {
		if condition(p, v1.PodReady) != v1.ConditionTrue {
			t.Errorf("the pod was not ready after a restart of the kubelet: %+v", p.Status.Conditions)
		}
		if p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Error("the container was restarted")
		}
	}
	for id, n := range g.cri.starts {
		if n != 1 {
			t.Errorf("%s was started %d times", id, n)
		}
	}
}

// What happens while no kubelet runs is reported by the next one.
func TestExitWhileAwayIsReported(t *testing.T) {
	g := newRig(t)
	pod := simplePod("p")
	pod.Spec.RestartPolicy = v1.RestartPolicyNever
	g.api.put(pod)
	g.until("ready", func() bool { return g.ready("p") })
	g.kill()
	g.cri.end(g.cri.running("web"), 3)
	g.start()
	g.until("phase Failed", func() bool { return g.api.get("p").Status.Phase == v1.PodFailed })
	if s := g.api.get("p").Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != 3 {
		t.Errorf("container state %+v", s)
	}
}

// The first restart is immediate, the second waits ten seconds and says so, also after a restart of the kubelet.
func TestCrashLoopBacksOff(t *testing.T) {
	g := newRig(t)
	g.api.put(simplePod("p"))
	g.until("ready", func() bool { return g.ready("p") })
	first := g.cri.running("web")
	g.cri.end(first, 1)
	g.until("the first restart", func() bool { c := g.cri.running("web"); return c != nil && c.Id != first.Id })
	g.cri.end(g.cri.running("web"), 1)
	crashing := func() bool {
		cs := g.api.get("p").Status.ContainerStatuses
		return len(cs) == 1 && cs[0].RestartCount == 1 && cs[0].State.Waiting != nil && cs[0].State.Waiting.Reason == "CrashLoopBackOff"
	}
	g.until("CrashLoopBackOff", crashing)
	want := "back-off 10s restarting failed container=web pod=p_default(uid-p)"
	if cs := g.api.get("p").Status.ContainerStatuses[0]; cs.State.Waiting.Message != want || cs.LastTerminationState.Terminated == nil {
		t.Errorf("container status %+v", cs)
	}
	g.kill()
	g.start()
	g.until("CrashLoopBackOff after the restart", crashing)
	if c := g.cri.running("web"); c != nil {
		t.Error("the restarted kubelet forgot the back-off")
	}
}

func TestMissingImageIsSaid(t *testing.T) {
	g := newRig(t)
	pod := simplePod("p")
	pod.Spec.Containers[0].Image = "absent"
	g.api.put(pod)
	waits := func(reason string) func() bool {
		return func() bool {
			cs := g.api.get("p").Status.ContainerStatuses
			return len(cs) == 1 && cs[0].State.Waiting != nil && cs[0].State.Waiting.Reason == reason
		}
	}
	g.until("ErrImagePull", waits("ErrImagePull"))
	g.until("ImagePullBackOff", waits("ImagePullBackOff"))
	g.api.remove("p", 30)
	g.until("the object to go", func() bool { return g.api.get("p") == nil })
}

// Pods that the API server does not know are removed, once it was asked.
func TestUnknownPodIsRemoved(t *testing.T) {
	g := newRig(t)
	g.api.put(simplePod("p"))
	g.until("ready", func() bool { return g.ready("p") })
	g.kill()
	g.api.mu.Lock()
	delete(g.api.pods, "p")
	g.api.rv++
	g.api.mu.Unlock()
	g.start()
	g.until("the sandbox to go", func() bool {
		g.cri.mu.Lock()
		defer g.cri.mu.Unlock()
		return len(g.cri.boxes) == 0
	})
}

// A runtime whose calls end without an answer is looked at before anything is done again.
func TestLostRepliesStartNothingTwice(t *testing.T) {
	g := newRig(t)
	lost := 0
	g.cri.mu.Lock()
	g.cri.fail = func(call string) error {
		if call == "StartContainer" || call == "RunPodSandbox" || call == "CreateContainer" {
			if lost++; lost%2 == 1 {
				return status.Error(codes.Unavailable, "the runtime stumbles")
			}
		}
		return nil
	}
	g.cri.mu.Unlock()
	g.api.put(simplePod("p"))
	g.until("ready", func() bool { return g.ready("p") })
}

// Cleanup removes what a killed kubelet left, mounts included.
func TestCleanupLeavesNothing(t *testing.T) {
	g := newRig(t)
	pod := simplePod("p")
	pod.Spec.Volumes = []v1.Volume{{Name: "mem", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}}}
	pod.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "mem", MountPath: "/m"}}
	g.api.put(pod)
	g.until("ready", func() bool { return g.ready("p") })
	g.kill()
	mounted := func() bool { return strings.Contains(read(t, "/proc/self/mountinfo"), g.o.RootDir) }
	if !mounted() {
		t.Fatal("the pod has no mount: the test shows nothing")
	}
	if err := Cleanup(g.o); err != nil {
		t.Fatal(err)
	}
	if mounted() {
		t.Error("a mount is left")
	}
	if left, err := os.ReadDir(filepath.Join(g.o.RootDir, "pods")); err == nil && len(left) > 0 {
		t.Errorf("pods/%s is left", left[0].Name())
	}
}
