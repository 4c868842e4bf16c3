package proxy

import (
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"worknode/kube"
	"worknode/proxy/api"
	"worknode/proxy/localhost"
	"worknode/proxy/state"
)

// nodePorts knows the Services that have TCP node ports, for the listeners on loopback.
type nodePorts struct {
	mu   sync.Mutex
	all  map[state.Name]*state.Service
	news bool
}

func newNodePorts() *nodePorts { return &nodePorts{all: map[state.Name]*state.Service{}} }

// receive stands between the feed and the loop. It notes node ports, and takes away what the configuration wants gone.
func (p *process) receive(next func(kube.Delta)) func(kube.Delta) {
	return func(d kube.Delta) {
		if o, ok := d.Object.(*corev1.Service); ok {
			if p.noExternal {
				o.Spec.ExternalIPs = nil
			}
			p.nodePorts.note(o, d.Op == kube.Delete)
		}
		next(d)
	}
}

func (n *nodePorts) note(o *corev1.Service, gone bool) {
	name := state.Name{Namespace: o.Namespace, Name: o.Name}
	var now *state.Service
	if !gone {
		if s, _ := api.Service(o); s != nil && slices.ContainsFunc(s.Ports, func(p state.ServicePort) bool { return p.NodePort != 0 && p.Proto == state.TCP }) {
			now = s
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case now != nil:
		n.all[name], n.news = now, true
	case n.all[name] != nil:
		delete(n.all, name)
		n.news = true
	}
}

// touch has the next list count as news.
func (n *nodePorts) touch() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.news = true
}

// list says where the kernel serves each node port: on an address of this node, or else as the ClusterIP. news tells
// whether it may have changed since the last time.
func (n *nodePorts) list(nodes []netip.Addr) (ports []localhost.Port, news bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if news, n.news = n.news, false; !news {
		return nil, false
	}
	for name, s := range n.all {
		for _, p := range s.Ports {
			if p.NodePort == 0 || p.Proto != state.TCP {
				continue
			}
			for _, vip := range s.ClusterIPs {
				via := netip.AddrPortFrom(vip, p.Port)
				if i := slices.IndexFunc(nodes, func(a netip.Addr) bool { return state.Of(a) == state.Of(vip) }); i >= 0 {
					via = netip.AddrPortFrom(nodes[i], p.NodePort)
				}
				ports = append(ports, localhost.Port{Service: name, NodePort: p.NodePort, Via: via})
			}
		}
	}
	return ports, news
}
