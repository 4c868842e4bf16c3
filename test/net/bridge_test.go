package net

import (
	"os/exec"
	"testing"
)

// The shape of a real node: both pods on one bridge. The answer of a pod to its neighbour stays on the bridge, and
// would reach the client with the pod's address instead of the Service's, did the bridge not hand it to netfilter.
func TestPodsOnOneBridgeReachEachOtherAndThemselves(t *testing.T) {
	n := newNode(t, options{ClusterCIDR: []string{"10.3.0.0/16"}})
	host := n.prefix + "node"
	n.ip("-n", host, "link", "add", "br0", "type", "bridge")
	n.ip("-n", host, "addr", "add", "10.3.0.1/24", "dev", "br0")
	n.ip("-n", host, "link", "set", "br0", "up")
	n.sysctl("net.bridge.bridge-nf-call-iptables=1")
	for _, pod := range []string{"a", "b"} {
		ns, addr := n.prefix+pod, map[string]string{"a": "10.3.0.2", "b": "10.3.0.3"}[pod]
		n.ip("netns", "add", ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		n.ip("-n", host, "link", "add", "v"+pod, "type", "veth", "peer", "name", "eth0", "netns", ns)
		n.ip("-n", host, "link", "set", "v"+pod, "master", "br0", "up")
		n.ip("-n", host, "link", "set", "v"+pod, "type", "bridge_slave", "hairpin", "on")
		n.ip("-n", ns, "addr", "add", addr+"/24", "dev", "eth0")
		n.ip("-n", ns, "link", "set", "eth0", "up")
		n.ip("-n", ns, "route", "add", "default", "via", "10.3.0.1")
		n.serve(pod, 8080)
	}
	n.start()
	n.service("web", "10.96.0.1", port{tcp, 80, 30080})
	n.endpoints("web", 8080, endpoint{addr: "10.3.0.2", local: true}, endpoint{addr: "10.3.0.3", local: true})
	if c := n.reaches("a", "10.96.0.1:80", "10.3.0.2", "10.3.0.3"); !c["10.3.0.2"] && !c["10.3.0.1"] {
		t.Errorf("clients %v", c)
	}
	n.reaches("node", "10.96.0.1:80", "10.3.0.2", "10.3.0.3")
	n.reaches("ext", nodeIP+":30080", "10.3.0.2", "10.3.0.3")
	n.endpoints("web", 8080, endpoint{addr: "10.3.0.2", local: true})
	if c := n.reaches("a", "10.96.0.1:80", "10.3.0.2"); !c["10.3.0.1"] || len(c) != 1 {
		t.Errorf("a pod that calls itself should see the node as client, saw %v", c)
	}
}
