package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/link"
	"worknode/kernel/nft"
)

// Mapping is one host port: what comes to the node's port goes to the pod's.
type Mapping struct {
	Proto    uint8      // unix.IPPROTO_TCP, UDP or SCTP
	HostIP   netip.Addr // the address it is served on; unspecified or not valid: any address of the node
	HostPort uint16
	To       netip.AddrPort
}

// Ports serves host ports by translating destination addresses, in one small table per family. Rules do not depend on
// how many there are: each mapping is one element of a map.
//
// 127.0.0.1:PORT works too. That needs route_localnet on the device that leads to the pod; so that the pods behind it do
// not reach what listens on the node's loopback, packets to 127.0.0.0/8 that come in by such a device are dropped. There is no
// such switch for IPv6: [::1]:PORT is not served.
type Ports struct {
	table   string
	sharing bool // pods may be neighbours on one link: see compile
	links   *link.Handle
	conn    *nft.Conn

	mu    sync.Mutex
	bySbx map[string][]placed
	wires map[uint32]bool // devices with route_localnet by us
	have  map[nft.Family]content
}

// placed is a mapping and the device that leads to its pod.
type placed struct {
	Mapping
	device uint32
}

// OpenPorts prepares host ports in the net namespace of the calling thread. name tells the tables of runtimes side by
// side apart; the process must stay in that namespace. sharing says that pods may talk to each other without passing the node, as behind the usual CNI bridge:
// their connections to each other's host ports are then masqueraded, or the answers would take the short way.
// Nothing is made before the first Add. Call Reconcile before that.
func OpenPorts(name string, sharing bool) (*Ports, error) {
	p := &Ports{table: portsTable(name), sharing: sharing, bySbx: map[string][]placed{}, wires: map[uint32]bool{}, have: map[nft.Family]content{}}
	var err error
	if p.links, err = link.Open(); err != nil {
		return nil, fmt.Errorf("host ports: %w", err)
	}
	if p.conn, err = nft.Open(); err != nil {
		p.links.Close()
		return nil, fmt.Errorf("host ports: %w", err)
	}
	return p, nil
}

func portsTable(name string) string { return "worknode-ports-" + name }

// Add serves the mappings of a sandbox, all or none. Repeat: safe, the same sandbox's earlier mappings are replaced.
// Errors: Exists if another sandbox has the port; Unsupported names what the kernel lacks. Crash: Reconcile removes them.
func (p *Ports) Add(sandbox string, mappings []Mapping) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.conflict(sandbox, mappings); err != nil {
		return err
	}
	list, err := p.place(mappings)
	if err != nil {
		return err
	}
	before, had := p.bySbx[sandbox]
	p.bySbx[sandbox] = list
	if err := p.apply(); err != nil {
		delete(p.bySbx, sandbox)
		if had {
			p.bySbx[sandbox] = before
		}
		return errors.Join(err, p.apply()) // one family's table may have changed already
	}
	p.endFlows(mappings, false)
	return nil
}

// Del ends the mappings of a sandbox. Repeat: safe, also for one that has none.
func (p *Ports) Del(sandbox string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	list, ok := p.bySbx[sandbox]
	if !ok {
		return nil
	}
	delete(p.bySbx, sandbox)
	if err := p.apply(); err != nil {
		p.bySbx[sandbox] = list
		return err
	}
	var gone []Mapping
	for _, m := range list {
		gone = append(gone, m.Mapping)
	}
	p.endFlows(gone, true)
	return nil
}

// Reconcile makes the tables serve exactly the live sandboxes' mappings, in one transaction a family: an established
// connection notices nothing, and a new one never meets a moment without the rules. A mapping that cannot be served any
// more is logged. Call it once, between OpenPorts and the first Add.
func (p *Ports) Reconcile(live map[string][]Mapping) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for sandbox, mappings := range live {
		err := p.conflict(sandbox, mappings)
		if err == nil {
			p.bySbx[sandbox], err = p.place(mappings)
		}
		if err != nil {
			delete(p.bySbx, sandbox)
			slog.Warn("host ports of a sandbox are not served any more", "sandbox", sandbox, "error", err)
		}
	}
	if err := p.oldWires(); err != nil {
		return err
	}
	for _, fam := range []nft.Family{nft.IPv4, nft.IPv6} {
		if err := p.adopt(fam); err != nil {
			return err
		}
	}
	return p.apply()
}

// adopt replaces a predecessor's table, whatever is in it: established connections do not depend on it.
func (p *Ports) adopt(fam nft.Family) error {
	_, err := p.conn.Table(fam, p.table)
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unsupported) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("host ports: %w", err)
	}
	return p.replace(fam, true, p.compile(fam))
}

// conflict finds another sandbox that serves one of these ports.
func (p *Ports) conflict(sandbox string, mappings []Mapping) error {
	for i, m := range mappings {
		for _, other := range mappings[:i] {
			if m.overlaps(other) {
				return fault.New(fault.Invalid, "host port %s: the pod asks for it twice", m)
			}
		}
		for id, list := range p.bySbx {
			for _, other := range list {
				if id != sandbox && m.overlaps(other.Mapping) {
					err := fault.New(fault.Exists, "host port %s: sandbox %s has %s", m, id, other.Mapping)
					return fault.Hint(err, "stop that pod, or choose another hostPort or hostIP")
				}
			}
		}
	}
	return nil
}

func (m Mapping) overlaps(o Mapping) bool {
	return m.Proto == o.Proto && m.HostPort == o.HostPort && m.To.Addr().Is4() == o.To.Addr().Is4() &&
		(m.any() || o.any() || m.HostIP == o.HostIP)
}

func (m Mapping) any() bool { return !m.HostIP.IsValid() || m.HostIP.IsUnspecified() }

// String is how a person names the port: udp 10.0.0.1:53.
func (m Mapping) String() string {
	names := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}
	if m.any() {
		return fmt.Sprintf("%s %d", names[m.Proto], m.HostPort)
	}
	return fmt.Sprintf("%s %s", names[m.Proto], netip.AddrPortFrom(m.HostIP, m.HostPort))
}

// place finds the device behind which each pod is.
func (p *Ports) place(mappings []Mapping) ([]placed, error) {
	var out []placed
	for _, m := range mappings {
		if m.HostIP.IsValid() && m.HostIP.Is4() != m.To.Addr().Is4() {
			return nil, fault.New(fault.Invalid, "host port %s: the pod's address %s is of the other family", m, m.To.Addr())
		}
		device, err := p.links.DeviceTo(m.To.Addr())
		if err != nil {
			return nil, fmt.Errorf("host port %s: %w", m, err)
		}
		out = append(out, placed{m, uint32(device)})
	}
	return out, nil
}

// oldWires learns from a predecessor's table on which devices it turned route_localnet on, less those that are gone.
func (p *Ports) oldWires() error {
	devices, err := p.links.List()
	if err != nil {
		return fmt.Errorf("host ports: %w", err)
	}
	var old []uint32
	err = p.conn.Elems(nft.IPv4, p.table, setWires, func() { old = old[:0] }, func(e nft.Elem) {
		if len(e.Key) == 4 {
			old = append(old, host32(e.Key))
		}
	})
	if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Unsupported) {
		return fmt.Errorf("host ports: %w", err)
	}
	for _, d := range devices {
		if slices.Contains(old, uint32(d.Index)) {
			p.wires[uint32(d.Index)] = true
		}
	}
	return nil
}

// openWires turns route_localnet on where mappings need it and it is off. The guard against pods is in the table before.
func (p *Ports) openWires() error {
	var missing []uint32
	for _, list := range p.bySbx {
		for _, m := range list {
			if m.To.Addr().Is4() && !slices.Contains(missing, m.device) {
				missing = append(missing, m.device)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	devices, err := p.links.List()
	if err != nil {
		return fmt.Errorf("host ports: %w", err)
	}
	for _, d := range devices {
		if d.Name != "lo" && slices.Contains(missing, uint32(d.Index)) {
			if err := sysctl("net/ipv4/conf/"+d.Name+"/route_localnet", "1"); err != nil {
				return fault.Hint(fmt.Errorf("host ports: %w", err), "127.0.0.1 cannot lead to pods without it")
			}
		}
	}
	return nil
}

// Close lets go of the tables. With remove they are taken down, and route_localnet is turned off where it was for them;
// otherwise they go on serving. Repeat: safe; no other method may follow.
func (p *Ports) Close(remove bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	if remove {
		devices, err := p.links.List()
		errs = append(errs, err)
		for _, d := range devices {
			if p.wires[uint32(d.Index)] {
				if err := sysctl("net/ipv4/conf/"+d.Name+"/route_localnet", "0"); err != nil {
					slog.Warn("route_localnet stays on", "device", d.Name, "error", err)
				}
			}
		}
		errs = append(errs, removePorts(p.conn, p.table))
	}
	errs = append(errs, p.links.Close(), p.conn.Close())
	return errors.Join(errs...)
}

func removePorts(c *nft.Conn, table string) error {
	var errs []error
	for _, fam := range []nft.Family{nft.IPv4, nft.IPv6} {
		if err := removeTable(c, fam, table); err != nil && !fault.Is(err, fault.Unsupported) && !errors.Is(err, unix.EAFNOSUPPORT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
