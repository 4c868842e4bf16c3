package proxy

import (
	"context"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"worknode/fault"
	"worknode/proxy/addr"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// Traced is what becomes of a connection, and which rules decide it.
type Traced struct {
	Client   netip.Addr     `json:"client"`
	Device   string         `json:"device,omitempty"` // that it comes by; empty: from this node itself
	To       netip.AddrPort `json:"to"`
	Protocol string         `json:"protocol"`
	Service  string         `json:"service,omitempty"` // namespace/name:port
	Fate     string         `json:"fate"`              // passed, sent, refused, dropped
	Why      string         `json:"why"`
	Targets  []TracedTarget `json:"targets,omitempty"`
	Sticky   bool           `json:"remembered,omitempty"` // the choice holds for the client's next connections
	Steps    []string       `json:"steps"`
}

// TracedTarget is an endpoint that may be chosen; all are as likely.
type TracedTarget struct {
	Endpoint   netip.AddrPort `json:"endpoint"`
	Masquerade bool           `json:"masquerade"` // it sees the node's address, not the client's
}

// AskTrace asks the proxy that runs in the network namespace of the process: client is an IP address, to is
// ADDRESS:PORT or ADDRESS:PORT/PROTOCOL; device is what the packet comes by, empty to have it found out.
func AskTrace(ctx context.Context, client, to, device string) (*Traced, error) {
	t := new(Traced)
	return t, ask(ctx, "/trace", url.Values{"client": {client}, "to": {to}, "device": {device}}, t)
}

func (p *process) trace(ctx context.Context, client, to, device string) (*Traced, error) {
	from, err := netip.ParseAddr(client)
	if err != nil {
		return nil, fault.New(fault.Invalid, "client %q: want an IP address", client)
	}
	text, word, _ := strings.Cut(to, "/")
	dest, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, fault.New(fault.Invalid, "destination %q: want ADDRESS:PORT, or ADDRESS:PORT/tcp, /udp or /sctp", to)
	}
	protos := map[string]state.Proto{"": state.TCP, "tcp": state.TCP, "udp": state.UDP, "sctp": state.SCTP}
	proto, ok := protos[strings.ToLower(word)]
	if !ok {
		return nil, fault.New(fault.Invalid, "protocol %q: want tcp, udp or sctp", word)
	}
	from, dest = from.Unmap(), netip.AddrPortFrom(dest.Addr().Unmap(), dest.Port())
	if from.Is4() != dest.Addr().Is4() {
		return nil, fault.New(fault.Invalid, "client %s and destination %s are of different families", from, dest)
	}
	var view *plan.View
	var here []netip.Addr
	out := &Traced{Client: from, To: dest, Protocol: proto.String()}
	err = p.loop.ask(ctx, func() {
		here = slices.Clone(p.loop.here.Addrs)
		for _, f := range p.loop.families {
			if f.fam == state.Of(from) && f.model != nil {
				view = plan.NewView(f.model)
				f.model.Ports(func(port *plan.Port) {
					if reaches(port, dest, proto, here) {
						out.Service = port.Key.Service.String() + ":" + port.Key.Port
					}
				})
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if view == nil {
		return nil, fault.New(fault.Temporary, "the kernel does not have the Services of this family yet (try again; `worknode proxy dump` shows what there is)")
	}
	own := func(a netip.Addr) bool { return a.IsLoopback() || slices.Contains(here, a) }
	if out.Device = device; device == "" && !own(from) {
		if out.Device, err = addr.DeviceTo(from); err != nil {
			return nil, fault.Hint(err, "name the device that the connection comes by with --device")
		}
	}
	v := plan.Trace(view, plan.Packet{Src: netip.AddrPortFrom(from, 40000), Dst: dest, Proto: proto, Device: out.Device, Here: own})
	out.Fate, out.Sticky, out.Why = v.Fate.String(), v.Sticky, why(&v, out)
	for _, t := range v.Targets {
		out.Targets = append(out.Targets, TracedTarget{t.To, t.Masquerade})
	}
	for _, s := range v.Steps {
		out.Steps = append(out.Steps, s.String())
	}
	return out, nil
}

// reaches tells whether a destination is a Service port's.
func reaches(p *plan.Port, to netip.AddrPort, proto state.Proto, here []netip.Addr) bool {
	switch {
	case p.Key.Proto != proto:
		return false
	case p.Port == to.Port() && (p.ClusterIP == to.Addr() || slices.Contains(p.External, to.Addr())):
		return true
	}
	return p.NodePort != 0 && p.NodePort == to.Port() && slices.Contains(here, to.Addr())
}

func why(v *plan.Verdict, t *Traced) string {
	switch {
	case v.Fate == plan.Sent:
		return "one of the endpoints below takes it, each is as likely"
	case v.Fate == plan.Refusal && t.Service != "":
		return "the Service has no endpoint that could take it"
	case v.Fate == plan.Refusal:
		return "no Service has this port at this address"
	case v.Fate == plan.Dropped && t.Service != "":
		return "the Service's policy or its source ranges keep it out; the last step says which"
	case v.Fate == plan.Dropped:
		return "no Service has this address"
	case t.To.Addr().IsLoopback():
		return "the kernel's rules leave loopback alone; a node port there is a listener of the proxy, if nodePortAddresses has localhost"
	case t.Service != "":
		return "this is a node port, and this address serves none; see nodePortAddresses"
	}
	return "it is no Service's: it goes where it was sent to"
}
