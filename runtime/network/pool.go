package network

import (
	"net/netip"
	"sync"

	"worknode/fault"
)

// pool gives addresses of a subnet to sandboxes, one each. It goes round the subnet, so that an address rests as long as
// possible before it is given again: a late packet for the old owner should not reach a new one.
type pool struct {
	subnet netip.Prefix
	last   netip.Addr // the subnet's last address, broadcast, never given

	mu     sync.Mutex
	next   netip.Addr
	owner  map[netip.Addr]string
	bySand map[string]netip.Addr
}

func newPool(subnet netip.Prefix) *pool {
	raw := subnet.Addr().As4()
	for bit := subnet.Bits(); bit < 32; bit++ {
		raw[bit/8] |= 0x80 >> (bit % 8)
	}
	p := &pool{subnet: subnet, last: netip.AddrFrom4(raw),
		owner: map[netip.Addr]string{}, bySand: map[string]netip.Addr{}}
	p.next = p.first()
	return p
}

// first is the first address for pods: before it are the subnet's own and the gateway's.
func (p *pool) first() netip.Addr { return p.subnet.Addr().Next().Next() }

// take returns the sandbox's address, giving it one if needed. Errors: Exhausted.
func (p *pool) take(sandbox string) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.bySand[sandbox]; ok {
		return a, nil
	}
	for start := p.next; ; {
		a := p.next
		if p.next = a.Next(); p.next == p.last {
			p.next = p.first()
		}
		if _, taken := p.owner[a]; !taken {
			p.owner[a], p.bySand[sandbox] = sandbox, a
			return a, nil
		}
		if p.next == start {
			err := fault.New(fault.Exhausted, "all %d addresses of %s are in use", len(p.owner), p.subnet)
			return netip.Addr{}, fault.Hint(err, "choose a larger pod subnet")
		}
	}
}

// claim records an address that a sandbox already has.
func (p *pool) claim(sandbox string, a netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.subnet.Contains(a) || a.Less(p.first()) || a == p.last {
		return fault.New(fault.Invalid, "address %s is not one of %s for pods", a, p.subnet)
	}
	if other, taken := p.owner[a]; taken && other != sandbox {
		return fault.New(fault.Exists, "address %s belongs to sandbox %s", a, other)
	}
	p.owner[a], p.bySand[sandbox] = sandbox, a
	if !a.Less(p.next) { // go on behind the highest: the gaps below are the most recently freed
		if p.next = a.Next(); p.next == p.last {
			p.next = p.first()
		}
	}
	return nil
}

// give takes the sandbox's address back.
func (p *pool) give(sandbox string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.owner, p.bySand[sandbox])
	delete(p.bySand, sandbox)
}
