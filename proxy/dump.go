package proxy

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// Dump is what the kernel has of Services, as their users see it.
type Dump struct {
	Node       string          `json:"node"`
	Zone       string          `json:"zone,omitempty"`
	Mode       string          `json:"mode"` // as configured; all are served by nftables
	Since      time.Time       `json:"lastCommit"`
	Complete   bool            `json:"complete"` // the kernel has all that the API has told
	NodePortIP []netip.Addr    `json:"nodePortAddresses"`
	Loopback   []netip.Addr    `json:"loopbackNodePortAddresses,omitempty"`
	Services   []DumpedService `json:"services"`
	Troubles   []DumpedTrouble `json:"troubles,omitempty"`
}

// DumpedService is one Service.
type DumpedService struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Ports     []DumpedPort `json:"ports"`
}

// DumpedPort is one port of a Service in one family.
type DumpedPort struct {
	Family    string           `json:"family"`
	Name      string           `json:"name,omitempty"`
	Protocol  string           `json:"protocol"`
	ClusterIP netip.Addr       `json:"clusterIP,omitzero"`
	Port      uint16           `json:"port"`
	NodePort  uint16           `json:"nodePort,omitempty"`
	External  []netip.Addr     `json:"externalAddresses,omitempty"` // external IPs and load balancer's
	Sources   []netip.Prefix   `json:"loadBalancerSources,omitempty"`
	Internal  string           `json:"internalTrafficPolicy"`
	Outside   string           `json:"externalTrafficPolicy"`
	Affinity  string           `json:"clientIPAffinity,omitempty"`
	Endpoints []netip.AddrPort `json:"endpoints"`                // for policy Cluster
	Local     []netip.AddrPort `json:"localEndpoints,omitempty"` // for policy Local
}

// DumpedTrouble is an object that is not served as it is written.
type DumpedTrouble struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Reason    string `json:"reason"`
	Message   string `json:"message"`
}

// AskDump asks the proxy that runs in the network namespace of the process.
func AskDump(ctx context.Context) (*Dump, error) {
	d := new(Dump)
	return d, ask(ctx, "/dump", nil, d)
}

func (p *process) dump(ctx context.Context) (*Dump, error) {
	d := &Dump{Node: p.node, Mode: p.mode(), Services: []DumpedService{}}
	p.mu.Lock()
	d.Loopback = p.set.Localhost
	p.mu.Unlock()
	at := map[state.Name][]DumpedPort{}
	err := p.loop.ask(ctx, func() {
		l := p.loop
		d.Zone, d.Since, d.NodePortIP = l.node.Zone, l.last, slices.Clone(l.nodeIPs)
		d.Complete = l.first && len(l.dirty) == 0 && l.lastErr == ""
		for _, f := range l.families {
			if f.model != nil {
				f.model.Ports(func(port *plan.Port) { at[port.Key.Service] = append(at[port.Key.Service], dumped(f.fam, port)) })
			}
		}
		for _, t := range l.troubles {
			d.Troubles = append(d.Troubles, DumpedTrouble{t.Kind, t.Object.Namespace, t.Object.Name, t.Reason, t.Message})
		}
	})
	for _, name := range slices.SortedFunc(maps.Keys(at), state.Name.Compare) {
		ports := at[name]
		slices.SortFunc(ports, func(a, b DumpedPort) int {
			return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Family, b.Family))
		})
		d.Services = append(d.Services, DumpedService{name.Namespace, name.Name, ports})
	}
	slices.SortFunc(d.Troubles, func(a, b DumpedTrouble) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return d, err
}

// dumped copies: the model goes on changing.
func dumped(fam state.Family, p *plan.Port) DumpedPort {
	policy := func(local bool) string {
		if local {
			return "Local"
		}
		return "Cluster"
	}
	out := DumpedPort{Family: familyName(fam), Name: p.Key.Port, Protocol: p.Key.Proto.String(), ClusterIP: p.ClusterIP, Port: p.Port, NodePort: p.NodePort,
		External: slices.Clone(p.External), Internal: policy(p.InternalLocal), Outside: policy(p.ExternalLocal),
		Endpoints: append([]netip.AddrPort{}, p.All...), Local: slices.Clone(p.Local)}
	if len(p.Guarded) > 0 {
		out.Sources = slices.Clone(p.Allow)
	}
	if p.Sticky > 0 {
		out.Affinity = p.Sticky.String()
	}
	slices.SortFunc(out.Endpoints, netip.AddrPort.Compare)
	slices.SortFunc(out.Local, netip.AddrPort.Compare)
	return out
}

func familyName(fam state.Family) string {
	if fam == state.V6 {
		return "IPv6"
	}
	return "IPv4"
}
