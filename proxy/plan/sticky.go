package plan

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"worknode/proxy/state"
)

// Sticky is what a Service port with session affinity has of its own: a map from clients to their endpoints, a chain that
// asks it and else picks at random, and a chain for each endpoint that records the choice. One serves all addresses of the
// port, as the promise is made for the port. Policy Local has another, so that it never sends a client elsewhere.
type Sticky struct {
	Name Chain // of the chain and of the map
	Keep time.Duration
	To   []netip.AddrPort // in slot order
}

// Names of maps and chains for affinity start with these.
const (
	stickyAll   = "aff-"
	stickyLocal = "afl-"
	maxName     = 150 // the kernel takes 255 bytes, and an endpoint is to follow
)

// IsSticky tells whether a map or chain is one of session affinity.
func IsSticky(name string) bool {
	return strings.HasPrefix(name, stickyAll) || strings.HasPrefix(name, stickyLocal)
}

// sticky returns what the port has of its own for each policy; nil for none.
func (p *Port) sticky() (all, local *Sticky) {
	if p.Sticky == 0 {
		return nil, nil
	}
	make := func(prefix string, to []netip.AddrPort) *Sticky {
		if len(to) == 0 {
			return nil
		}
		name := prefix + p.Key.Service.String() + "/" + strings.ToLower(p.Key.Proto.String())
		if p.Key.Port != "" {
			name += "/" + p.Key.Port
		}
		if len(name) > maxName {
			name = name[:maxName-17] + "-" + strconv.FormatUint(hash(name), 16)
		}
		return &Sticky{Name: Chain(name), Keep: p.Sticky, To: to}
	}
	if p.ClusterIP.IsValid() && !p.InternalLocal || p.external() {
		all = make(stickyAll, p.All)
	}
	if p.ClusterIP.IsValid() && p.InternalLocal || p.external() && p.ExternalLocal {
		local = make(stickyLocal, p.Local)
	}
	return all, local
}

// endpoint names the chain that records the choice of an endpoint.
func (s *Sticky) endpoint(to netip.AddrPort) Chain {
	return s.Name + Chain("__"+strings.ReplaceAll(to.Addr().String(), ":", ".")+"/"+strconv.Itoa(int(to.Port())))
}

// chains returns the chains, those that are gone to first.
func (s *Sticky) chains() []ChainRules {
	out := make([]ChainRules, 0, len(s.To)+1)
	choice := Rule{Do: Choose}
	for _, to := range s.To {
		c := s.endpoint(to)
		choice.Chains = append(choice.Chains, c)
		out = append(out, ChainRules{Name: c, Rules: []Rule{
			{Do: Remember, Map: string(s.Name), Keep: s.Keep, To: to},
			{Do: Send, To: to},
		}})
	}
	// To is a fill-in: see Recall.
	recall := Rule{Do: Recall, Map: string(s.Name), Keep: s.Keep, To: s.To[0]}
	return append(out, ChainRules{Name: s.Name, Rules: []Rule{recall, choice}})
}

// stick plans what becomes of a port's own chains and maps. Chains and maps that are not wanted any more are emptied now
// and removed with a later transaction: kernels before 6.2 count references to a chain until a while after they are gone.
func (d *Delta) stick(was, now *Port) {
	var had, has [2]*Sticky
	if was != nil {
		had[0], had[1] = was.sticky()
	}
	if now != nil {
		has[0], has[1] = now.sticky()
	}
	for i := range had {
		d.restick(had[i], has[i])
	}
}

func (d *Delta) restick(had, has *Sticky) {
	switch {
	case had == nil && has == nil:
		return
	case had == nil:
		d.Maps = append(d.Maps, string(has.Name))
		for _, c := range has.chains() {
			d.Chains = append(d.Chains, Write{c, false})
		}
		return
	case has == nil:
		for _, c := range had.chains() {
			d.empty(c.Name)
		}
		return
	}
	was := map[Chain]uint64{}
	for _, c := range had.chains() {
		was[c.Name] = c.Hash()
	}
	for _, c := range has.chains() {
		h, exists := was[c.Name]
		delete(was, c.Name)
		if h != c.Hash() {
			d.Chains = append(d.Chains, Write{c, exists})
		}
	}
	for c := range was { // endpoints that are gone
		d.empty(c)
	}
	if len(was) > 0 {
		d.Sweep = append(d.Sweep, Sweep{string(has.Name), has.To})
	}
}

// empty takes a chain's rules away.
func (d *Delta) empty(c Chain) {
	d.Chains = append(d.Chains, Write{ChainRules{Name: c}, true})
	if d.stale == nil {
		d.stale = map[Chain]bool{}
	}
	d.stale[c] = true
}

// unstick removes what earlier transactions have emptied, and takes back into use what is wanted again.
func (d *Delta) unstick(stale map[Chain]bool) {
	if len(stale) == 0 {
		return
	}
	again := map[Chain]bool{}
	for i := range d.Chains {
		w := &d.Chains[i]
		if stale[w.Name] && !w.Exists {
			w.Exists = true
			again[w.Name] = true
		}
	}
	d.Sweep = append(d.Sweep, forget(d.Maps, stale, d.services)...)
	d.Maps = slices.DeleteFunc(d.Maps, func(name string) bool { return stale[Chain(name)] })
	if d.stale == nil {
		d.stale = map[Chain]bool{}
	}
	for c := range again {
		d.stale[c] = false
	}
	if d.Empty() {
		return // a transaction for this alone is not worth it
	}
	for c := range stale {
		if again[c] {
			continue
		}
		d.DropChains = append(d.DropChains, c)
		if !strings.Contains(string(c), "__") { // the chain that asks the map of its name
			d.DropMaps = append(d.DropMaps, string(c))
		}
	}
	slices.Sort(d.DropChains)
}

// forget sweeps the maps that are taken back into use: they still have the clients of then.
func forget(names []string, stale map[Chain]bool, services map[state.Name][]*Port) (out []Sweep) {
	for _, ports := range services {
		for _, p := range ports {
			all, local := p.sticky()
			for _, s := range []*Sticky{all, local} {
				if s != nil && stale[s.Name] && slices.Contains(names, string(s.Name)) {
					out = append(out, Sweep{string(s.Name), s.To})
				}
			}
		}
	}
	return out
}

// discard removes chains and maps of affinity that nobody wants; those that still have rules are emptied first.
func (d *Delta) discard(have *Have, keep, keepMap map[Chain]bool) {
	for c, h := range have.Chains {
		switch {
		case !IsSticky(string(c)) || keep[c]:
		case h == emptyChain:
			d.DropChains = append(d.DropChains, c)
		default:
			d.empty(c)
		}
	}
	for _, name := range have.Maps {
		if h, used := have.Chains[Chain(name)]; !keepMap[Chain(name)] && (!used || h == emptyChain) {
			d.DropMaps = append(d.DropMaps, name)
		}
	}
	slices.Sort(d.DropChains)
}

// adopt compares what a table has of a port's own with what is wanted.
func (d *Delta) adopt(s *Sticky, have *Have, keep map[Chain]bool) {
	if !slices.Contains(have.Maps, string(s.Name)) {
		d.Maps = append(d.Maps, string(s.Name))
	} else {
		d.Sweep = append(d.Sweep, Sweep{string(s.Name), s.To})
	}
	for _, c := range s.chains() {
		keep[c.Name] = true
		if h, exists := have.Chains[c.Name]; !exists || h != c.Hash() {
			d.Chains = append(d.Chains, Write{c, exists})
		}
	}
}
