// Package bed is where tests meet a real cluster: upstream's control plane in a network of its own, and nodes beside it
// whose runtime, kubelet and proxy are each worknode's or upstream's. Everything of one bed is in one folder, one cgroup
// and a few namespaces, so that Down, or the next test after a crash, can remove it without knowing what it was.
//
//	c := bed.Start(t, bed.Config{})                                 // a control plane, until the test ends
//	n := c.Node(t, bed.NodeConfig{Runtime: bed.Upstream})           // containerd+runc, our kubelet, our proxy; Ready
//	c.Apply(t, manifest); c.WaitPod(t, "default/web", "Ready", 30*time.Second, harness.Ready)
//	n.Kubelet.Kill(); n.Kubelet.Restart()
//
// The network: the control plane answers at 10.77.0.1 on a bridge, node k has 10.77.0.(10+k), a default route to the
// control plane (which knows no way out, and says so at once), a /24 of 10.88.0.0/16 for its pods, and routes to the
// others' pods go through 10.77.0.1. Services are 10.96.0.0/16. A node also has its own /run, /var/lib, /var/log, /etc
// and /opt, so programs may use their default paths.
//
// Read first: cluster.go, node.go, part.go (command lines). The programs come from `make build`, scripts/kubernetes and
// scripts/upstream.
package bed
