package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/proxy/act"
	"worknode/proxy/addr"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// troubles are the objects that are not served as they are written, with what was last said of each. A Service that is
// barred is not served at all until it changes: one bad Service never stops the others.
type troubles map[troubleKey]state.Trouble

type troubleKey struct {
	kind string
	name state.Name
}

const (
	reasonContested = "AddressInUse"
	reasonBarred    = "NotServed"
)

// say reports a trouble if it is news.
func (t troubles) say(hooks state.Hooks, now state.Trouble) {
	k := troubleKey{now.Kind, now.Object}
	if was := t[k]; was == now || was.Reason == "" && now.Reason == "" {
		return
	}
	if t[k] = now; now.Reason == "" {
		delete(t, k)
	} else {
		slog.Warn("object is not served as it is written", "kind", now.Kind, "object", now.Object, "reason", now.Reason, "message", now.Message)
	}
	if hooks.Trouble != nil {
		hooks.Trouble(now)
	}
}

func (t troubles) barred(name state.Name) bool {
	return t[troubleKey{"Service", name}].Reason == reasonBarred
}

func (t troubles) bar(hooks state.Hooks, name state.Name, why string) {
	t.say(hooks, state.Trouble{Kind: "Service", Object: name, Reason: reasonBarred, Message: why})
}

func (t troubles) unbar(hooks state.Hooks, name state.Name) {
	if t.barred(name) {
		t.say(hooks, state.Trouble{Kind: "Service", Object: name})
	}
}

// update says which of the Services lost an address or port to a rival.
func (t troubles) update(l *loop, names []state.Name) {
	contested := l.store.Contested()
	if len(contested) == 0 && len(t) == 0 {
		return
	}
	lost := map[state.Name][]string{}
	for f, all := range contested {
		for _, name := range all[1:] {
			what := fmt.Sprintf("port %d/%v of the nodes", f.Port, f.Proto)
			if f.Addr.IsValid() {
				what = fmt.Sprintf("%v/%v", netip.AddrPortFrom(f.Addr, f.Port), f.Proto)
			}
			lost[name] = append(lost[name], fmt.Sprintf("%s is %s's", what, all[0]))
		}
	}
	for _, name := range names {
		if t.barred(name) {
			continue
		}
		now := state.Trouble{Kind: "Service", Object: name}
		if what := lost[name]; len(what) > 0 {
			slices.Sort(what)
			now.Reason = reasonContested
			now.Message = fmt.Sprintf("several Services claim one address and port, the first by name has it: %s", what)
		}
		t.say(l.hooks, now)
	}
}

// mostSuspects bounds how many Services one failure may bar.
const mostSuspects = 8

// suspect finds the Services that the kernel refuses, if it is Services that it refuses, and bars them. It asks the kernel
// by transactions that are checked and dropped.
func (l *loop) suspect(p *pass, why error) {
	if l.retry == 0 || fault.Is(why, fault.Denied) || fault.Is(why, fault.Temporary) || fault.Is(why, fault.Exhausted) ||
		fault.Is(why, fault.Busy) || errors.Is(why, unix.ENOBUFS) || !p.Full || len(p.deltas) < len(l.families) {
		return // a second try, from a look at the kernel, is what settles most failures
	}
	var names []state.Name
	l.store.Services(func(name state.Name) { names = append(names, name) })
	slices.SortFunc(names, state.Name.Compare)
	out := map[state.Name]bool{}
	refused := func(n int) error { // the first n, without those found
		some := make(map[state.Name]bool, n)
		for _, name := range names[:n] {
			some[name] = !out[name]
		}
		return l.try(p, func(name state.Name) bool { return some[name] })
	}
	if refused(0) != nil {
		return // it is not a Service's fault
	}
	for range mostSuspects {
		err := refused(len(names))
		if err == nil {
			break
		}
		low, high := 0, len(names) // the first low are fine, the first high are not
		for high-low > 1 {
			mid := (low + high) / 2
			if e := refused(mid); e != nil {
				high, err = mid, e
			} else {
				low = mid
			}
		}
		out[names[high-1]] = true
		l.troubles.bar(l.hooks, names[high-1], fmt.Sprintf("the kernel refuses it: %v", err))
		l.dirty[names[high-1]] = true
	}
}

// try asks the kernel about some of the Services, with nothing else changed.
func (l *loop) try(p *pass, only func(state.Name) bool) error {
	var changes []act.Change
	for i, f := range l.families {
		have := p.seen[i].Have
		if p.changes[i].Make {
			have = plan.Have{}
		}
		d := plan.Full(plan.Have{Elems: have.Elems, Chains: maps.Clone(have.Chains), Maps: have.Maps}, l.compileAll(f.fam, only), l.want(f.fam))
		changes = append(changes, act.Change{Family: f.fam, Delta: &d, Make: p.changes[i].Make, Exists: p.changes[i].Exists})
	}
	return l.tables.Try(changes...)
}

// healthPorts are the health-check node ports as they are after the last commit.
type healthPorts struct {
	at map[state.Name]state.HealthPort
}

// update recounts the Services of a pass, and tells the hook if anything is new.
func (h *healthPorts) update(l *loop, names []state.Name) {
	news := false
	for _, name := range names {
		var now state.HealthPort
		in := l.input(name)
		if in.Service != nil && in.Service.HealthPort != 0 {
			now = state.HealthPort{Service: name, Port: in.Service.HealthPort, Local: plan.ReadyHere(in)}
		}
		if h.at[name] == now {
			continue
		}
		news = true
		if h.at[name] = now; now.Port == 0 {
			delete(h.at, name)
		}
	}
	if news && l.hooks.Health != nil {
		l.hooks.Health(h.list())
	}
}

func (h *healthPorts) list() []state.HealthPort {
	return slices.SortedFunc(maps.Values(h.at), func(a, b state.HealthPort) int { return a.Service.Compare(b.Service) })
}

// tellNodeIPs tells the hook where node ports answer, if that is news.
func (l *loop) tellNodeIPs() {
	now := addr.Choose(l.here, l.settings.NodePorts, l.node.IPs)
	if l.hooks.NodePortAddrs != nil && (!l.first || !slices.Equal(now, l.nodeIPs)) {
		l.hooks.NodePortAddrs(slices.Clone(now))
	}
	l.nodeIPs = now
}
