package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"worknode/kube"
	"worknode/test/harness"
)

// churner makes pods and takes them away again, through whatever API there is at the moment.
type churner struct {
	*harness.Node
	made, gone int
}

func (c *churner) name(i int) string { return fmt.Sprintf("churn-%d", i) }

// insist repeats a request while the API is away.
func (c *churner) insist(what string, request func(context.Context) error) {
	c.Until(what, 20*time.Second, func() bool {
		ctx, end := context.WithTimeout(context.Background(), harness.Slow(5*time.Second))
		defer end()
		return request(ctx) == nil
	})
}

// more makes the next pod: every other one ends by itself.
func (c *churner) more() {
	p := app(c.name(c.made), "serve")
	if c.made%2 == 1 {
		p = app(c.name(c.made), "exit", strconv.Itoa(c.made%3))
		p.Spec.RestartPolicy = v1.RestartPolicyNever
	}
	c.insist("pod "+p.Name+" to be created", func(ctx context.Context) error {
		err := c.Kube.Create(ctx, kube.Pods, "default", p, &v1.Pod{})
		if apierrors.IsAlreadyExists(err) { // the answer to an earlier try died with the API
			return nil
		}
		return err
	})
	c.made++
}

// less waits for the oldest pod to have lived, and takes it away.
func (c *churner) less() {
	name := c.name(c.gone)
	c.WaitPod(name, "ready, or ended with its own code", 40*time.Second, func(p *v1.Pod) bool {
		if p == nil || len(p.Status.ContainerStatuses) == 0 {
			return false
		}
		return harness.Ready(p) || p.Status.ContainerStatuses[0].State.Terminated != nil
	})
	c.insist("pod "+name+" to be deleted", func(ctx context.Context) error {
		if err := c.Kube.Delete(ctx, kube.Pods, "default", name, nil); !apierrors.IsNotFound(err) {
			return err
		}
		return nil
	})
	c.gone++
}

// Processes die at random while pods come and go: at the end all is as if nothing had happened.
// WORKNODE_SEED repeats the order of a run; WORKNODE_KILLS makes it longer.
func TestRandomKillsLeaveNoTrace(t *testing.T) {
	seed, kills := uint64(time.Now().UnixNano()), 30
	if s, err := strconv.ParseUint(os.Getenv("WORKNODE_SEED"), 10, 64); err == nil {
		seed = s
	}
	if k, err := strconv.Atoi(os.Getenv("WORKNODE_KILLS")); err == nil {
		kills = k
	}
	t.Logf("WORKNODE_SEED=%d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	n := harness.Start(t, harness.Config{Images: []string{"app"}})
	n.Create(kube.Services, &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: v1.ServiceSpec{
		ClusterIP: "10.96.0.80", Selector: map[string]string{"app": "web"}, Ports: []v1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
	}})
	n.Create(kube.Pods, app("web", "serve"))
	n.Create(kube.Pods, app("talker", "lines", "100000000", "1000"))
	before := []*v1.Pod{n.WaitReady("web"), n.WaitReady("talker")}
	n.Until("the Service to answer", 5*time.Second, func() bool { _, err := n.Ask("10.96.0.80:80"); return err == nil })
	l := startLoad(n, "10.96.0.80:80")

	c := &churner{Node: n}
	victims := []string{"runtime", "kubelet", "proxy", "supervisor", "monitor"}
	keeper := "" // killed last of the two that keep the pipes
	for range kills {
		victim := victims[dice.IntN(len(victims))]
		if (victim == "monitor" || victim == "runtime") && keeper != "" && keeper != victim {
			// The pipes survive one of their two keepers, so the other one has to have come back. A pod that starts shows it.
			name := c.name(c.made)
			c.more()
			n.WaitPod(name, "started", 40*time.Second, func(p *v1.Pod) bool { return p != nil && p.Status.Phase != v1.PodPending })
			keeper = ""
		}
		c.more()
		n.Kill(victim)
		if victim == "monitor" || victim == "runtime" {
			keeper = victim
		}
		for c.made-c.gone > dice.IntN(4) {
			c.less()
		}
	}
	for c.gone < c.made {
		c.less()
	}
	for i := range c.made {
		n.WaitPod(c.name(i), "gone", 40*time.Second, harness.Gone)
	}
	l.end(t)
	t.Logf("%d kills, %d pods came and went", kills, c.made)

	for _, was := range before {
		now := n.WaitReady(was.Name)
		if a, b := was.Status.ContainerStatuses[0], now.Status.ContainerStatuses[0]; a.ContainerID != b.ContainerID || b.RestartCount != 0 {
			t.Errorf("%s was restarted: %s became %s", was.Name, a.ContainerID, b.ContainerID)
		}
	}
	noLineLost(t, n)
	n.Create(kube.Pods, app("after", "serve"))
	n.WaitReady("after")
	// Nothing of the churned pods may be left anywhere: two long-lived pods, and the one just made.
	for what, find := range map[string]func() []string{
		"pod folders": func() []string { all, _ := filepath.Glob(n.Place.Kubelet() + "/pods/*"); return all },
		"log folders": func() []string { all, _ := filepath.Glob(n.Place.PodLogs() + "/*"); return all },
		"sandboxes":   n.Sandboxes,
	} {
		n.Until("only three "+what, 15*time.Second, func() bool { return len(find()) <= 3 })
		if found := find(); len(found) != 3 {
			t.Errorf("%s: %v", what, found)
		}
	}
}
