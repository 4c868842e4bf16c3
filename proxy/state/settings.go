package state

import (
	"net/netip"
	"time"
)

// Settings is all that the dataplane depends on besides Services, EndpointSlices and the Node. It comes from the
// configuration. The loop may be given another one at any time and applies the difference to the kernel, in one
// transaction and without a gap. The zero value serves both families, has the mark bit 0 and masquerades nothing:
// start from DefaultSettings.
type Settings struct {
	NodeName string   // whose endpoints are local
	Families []Family // to serve; empty: both, as far as the kernel has them

	MasqueradeAll bool // hide the source of every connection to a ClusterIP, of pods too
	MasqueradeBit int  // of the packet mark, 0 to 31: says "masquerade" between our own rules

	// LocalPods tells traffic of this node's pods (or of the cluster's, with a cluster CIDR) from other traffic; a
	// packet is a pod's if any of these says so. Empty: nothing is ever a pod's, so ClusterIP traffic keeps its source
	// and externalTrafficPolicy Local has no short cut for pods.
	LocalPods []LocalPods

	NodePorts NodePortAddrs

	// ServiceCIDRs are where ClusterIPs come from, in addition to those of the API's ServiceCIDR objects: connections to
	// an address in there that no Service has are dropped.
	ServiceCIDRs []netip.Prefix

	// DropInvalid drops forwarded packets that connection tracking calls invalid, as kube-proxy does in its iptables mode
	// unless net.netfilter.nf_conntrack_tcp_be_liberal is set. Set it where that sysctl is not 1: such a packet would
	// reach a client with the endpoint's own address and be answered by a reset.
	DropInvalid bool

	// KeepUDPFlows leaves UDP flows to removed endpoints alone, where somebody else cleans connection tracking.
	KeepUDPFlows bool

	// MinSync is the least time between two transactions. Zero, for all who did not ask for it: a change is applied when
	// it arrives, and changes gather only while a transaction is in flight.
	MinSync time.Duration

	// FullSync is how often everything is compiled anew and compared with the kernel; ten minutes if zero.
	FullSync time.Duration
}

// DefaultSettings are kube-proxy's defaults (KubeProxyConfiguration v1alpha1), less its timers.
func DefaultSettings(node string) Settings {
	return Settings{NodeName: node, MasqueradeBit: 14, NodePorts: NodePortAddrs{Primary: true}}
}

// Detect is a way to tell a pod's traffic.
type Detect uint8

const (
	ByClusterCIDR     Detect = iota // source address in CIDRs
	ByNodeCIDR                      // source address in the Node's podCIDRs, as they are now
	ByBridge                        // received by the device Device
	ByInterfacePrefix               // received by a device whose name starts with Device
)

// LocalPods is one way to tell a pod's traffic, with its argument.
type LocalPods struct {
	By     Detect
	CIDRs  []netip.Prefix // ByClusterCIDR; of both families, any number
	Device string         // ByBridge, ByInterfacePrefix
}

// NodePortAddrs says on which of this node's addresses node ports answer. Loopback addresses never do in the kernel;
// serving those is a user-space listener's job.
type NodePortAddrs struct {
	Primary bool           // the Node object's InternalIP, else ExternalIP, one a family
	Ranges  []netip.Prefix // local addresses in these; 0.0.0.0/0 and ::/0 mean all
}

// Node is what the API says of this node now. The zero value is a Node that is not there (yet).
type Node struct {
	Exists   bool
	Eligible bool         // load balancers may send here (KEP-3836)
	Zone     string       // label topology.kubernetes.io/zone
	IPs      []netip.Addr // InternalIP before ExternalIP, one a family
	PodCIDRs []netip.Prefix
}
