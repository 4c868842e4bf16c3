package cluster

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/test/cluster/bed"
	"worknode/test/harness"
)

// From nothing but worknode: etcd, API server, controller manager and scheduler are containers of the node that then
// joins them, and what is killed comes back.
func TestControlPlaneOfStaticPods(t *testing.T) {
	start := time.Now()
	c, n := bed.StartSelf(t)
	t.Logf("the node is Ready in the cluster that it runs after %v", time.Since(start).Round(time.Millisecond))
	for _, name := range bed.Components {
		p := c.WaitPod(t, mirror(n, name), "Ready", 60*time.Second, harness.Ready)
		if own := p.OwnerReferences; len(own) != 1 || own[0].Kind != "Node" || own[0].Name != n.Name {
			t.Errorf("mirror of %s belongs to %v", name, own)
		}
	}
	c.Apply(t, hello)
	was := ready(t, c, "app=hello", 2)

	t.Run("a deleted mirror comes back, and nothing was restarted", func(t *testing.T) {
		key := mirror(n, "kube-scheduler")
		before := c.WaitPod(t, key, "Ready", 10*time.Second, harness.Ready)
		pid := n.Find("kubernetes", "kube-scheduler")
		c.Must(t, "-n", "kube-system", "delete", "pod", before.Name, "--wait=false")
		c.WaitPod(t, key, "another one, Ready", 20*time.Second, func(p *v1.Pod) bool { return harness.Ready(p) && p.UID != before.UID })
		if now := n.Find("kubernetes", "kube-scheduler"); now != pid || pid == 0 {
			t.Errorf("the scheduler was process %d and is %d", pid, now)
		}
	})
	for _, name := range bed.Components {
		t.Run(name+" is killed", func(t *testing.T) {
			restarts := restarts(c.WaitPod(t, mirror(n, name), "Ready", 60*time.Second, harness.Ready))
			if _, err := n.KillFound("kubernetes", name); err != nil {
				t.Fatal(err)
			}
			c.WaitPod(t, mirror(n, name), "restarted and Ready", 60*time.Second, func(p *v1.Pod) bool {
				return harness.Ready(p) && restarts != nil && p.Status.ContainerStatuses[0].RestartCount > *restarts
			})
		})
	}
	for _, words := range [][]string{{"worknode", "kubelet"}, {"worknode", "runtime"}, {"worknode", "proxy"}, {"worknode-monitor"}} {
		t.Run(words[len(words)-1]+" of worknode is killed", func(t *testing.T) {
			api := n.Find("kubernetes", "kube-apiserver")
			old, err := n.KillFound(words...)
			if err != nil {
				t.Fatal(err)
			}
			harness.Until(t, "a new process", 20*time.Second, func() bool { now := n.Find(words...); return now != 0 && now != old })
			if now := n.Find("kubernetes", "kube-apiserver"); now != api {
				t.Errorf("the API server was process %d and is %d", api, now)
			}
		})
	}
	// All of it together still does its work: etcd stores, the controllers act, the scheduler binds, the node runs.
	c.Must(t, "scale", "deployment", "hello", "--replicas=3")
	for _, p := range ready(t, c, "app=hello", 3) {
		for _, w := range was {
			if p.UID == w.UID && p.Status.ContainerStatuses[0].ContainerID != w.Status.ContainerStatuses[0].ContainerID {
				t.Errorf("pod %s was restarted", p.Name)
			}
		}
	}
	has(t, c.Must(t, "logs", "deployment/hello"), "serving on 8080")
	// Denials are not counted here: an API server that is just starting has no roles yet and refuses everybody.
}

func mirror(n *bed.Node, name string) string { return "kube-system/" + name + "-" + n.Name }

func restarts(p *v1.Pod) *int32 {
	if len(p.Status.ContainerStatuses) == 0 {
		return nil
	}
	return &p.Status.ContainerStatuses[0].RestartCount
}
