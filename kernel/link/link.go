// Package link makes and finds network devices, addresses and routes over rtnetlink: bridges, veth pairs with one end
// in another namespace, and what those need. It decides no names and no addresses, and keeps no state.
//
// The encoder is our own: what a pod needs fits two datagrams, which a general library spreads over a dozen calls.
package link

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// MaxName is the longest device name, in bytes (the kernel's IFNAMSIZ less the final zero).
const MaxName = 15

// vethPeer is VETH_INFO_PEER and portMode is IFLA_BRPORT_MODE (hairpin).
// Source: linux/veth.h, linux/if_link.h; x/sys has neither.
const (
	vethPeer = 1
	portMode = 4
)

const (
	create = unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL
	set    = unix.NLM_F_ACK
)

// Device is one network device of the Handle's namespace.
type Device struct {
	Name   string
	Index  int
	MTU    int // bytes
	Master int // index of the bridge it is a port of, 0 if none
	Kind   string
	MAC    net.HardwareAddr
	Up     bool
}

// EnsureBridge returns the bridge of this name, up, with this MAC, making it if needed.
// A fixed MAC matters: by default a bridge takes the lowest of its ports', and each pod would change the gateway's.
// Errors: Exists if a device of that name is no bridge.
func (h *Handle) EnsureBridge(name string, mtu int, mac net.HardwareAddr) (Device, error) {
	have, err := h.Get(name)
	if fault.Is(err, fault.NotFound) {
		var b batch
		b.begin("make bridge "+name, unix.RTM_NEWLINK, create, linkHeader(0, true))
		b.text(unix.IFLA_IFNAME, name)
		b.u32(unix.IFLA_MTU, uint32(mtu))
		b.attr(unix.IFLA_ADDRESS, mac)
		b.nest(unix.IFLA_LINKINFO, func() { b.text(unix.IFLA_INFO_KIND, "bridge") })
		if err := h.do(&b); err != nil && !fault.Is(err, fault.Exists) {
			return Device{}, err
		}
		return h.Get(name)
	}
	if err != nil {
		return Device{}, err
	}
	if have.Kind != "bridge" {
		err := fault.New(fault.Exists, "make bridge %s: a device of that name is there already and is no bridge", name)
		return Device{}, fault.Hint(err, "give the bridge another name, or remove it with: ip link delete %s", name)
	}
	if have.Up && have.MTU == mtu && bytes.Equal(have.MAC, mac) {
		return have, nil
	}
	var b batch
	b.begin("adopt bridge "+name, unix.RTM_NEWLINK, set, linkHeader(have.Index, true))
	b.u32(unix.IFLA_MTU, uint32(mtu))
	b.attr(unix.IFLA_ADDRESS, mac)
	if err := h.do(&b); err != nil {
		return Device{}, err
	}
	return h.Get(name)
}

// Veth describes a pair: Name stays here as a port of the bridge with index Bridge, PeerName goes to the net namespace
// that PeerNS is an open file of. The near end comes up; SetupInside raises the far one, which the kernel refuses to do
// while the pair is being made.
type Veth struct {
	Name     string
	Bridge   int
	MTU      int
	PeerName string
	PeerNS   int // file descriptor
	PeerMAC  net.HardwareAddr
}

// AddVeth makes the pair, both ends in place, and lets the port send a frame back where it came from (hairpin).
// Errors: Exists if Name is taken here or PeerName there; NotFound if the bridge is gone. Crash: the pair is whole, or
// without hairpin. The pair ends with either namespace.
func (h *Handle) AddVeth(v Veth) error {
	var b batch
	b.begin("make veth "+v.Name, unix.RTM_NEWLINK, create, linkHeader(0, true))
	b.text(unix.IFLA_IFNAME, v.Name)
	b.u32(unix.IFLA_MTU, uint32(v.MTU))
	b.u32(unix.IFLA_MASTER, uint32(v.Bridge))
	// One queue each: a veth queues nothing, and the default of one per possible CPU costs memory and time.
	b.u32(unix.IFLA_NUM_TX_QUEUES, 1)
	b.u32(unix.IFLA_NUM_RX_QUEUES, 1)
	b.nest(unix.IFLA_LINKINFO, func() {
		b.text(unix.IFLA_INFO_KIND, "veth")
		b.nest(unix.IFLA_INFO_DATA, func() {
			b.nestAfter(vethPeer, linkHeader(0, false), func() {
				b.text(unix.IFLA_IFNAME, v.PeerName)
				b.u32(unix.IFLA_MTU, uint32(v.MTU))
				b.u32(unix.IFLA_NUM_TX_QUEUES, 1)
				b.u32(unix.IFLA_NUM_RX_QUEUES, 1)
				b.attr(unix.IFLA_ADDRESS, v.PeerMAC)
				b.u32(unix.IFLA_NET_NS_FD, uint32(v.PeerNS))
			})
		})
	})
	// Only a second message may carry port settings: at creation the device has no master yet.
	b.begin("set hairpin on "+v.Name, unix.RTM_NEWLINK, set, linkHeader(0, false))
	b.text(unix.IFLA_IFNAME, v.Name)
	b.nest(unix.IFLA_LINKINFO, func() {
		b.text(unix.IFLA_INFO_SLAVE_KIND, "bridge")
		b.nest(unix.IFLA_INFO_SLAVE_DATA, func() { b.u8(portMode, 1) })
	})
	return h.do(&b)
}

// Delete removes a device by name; with one end of a veth goes the other. Repeat: safe, an absent device is no error.
func (h *Handle) Delete(name string) error {
	var b batch
	b.begin("delete device "+name, unix.RTM_DELLINK, set, linkHeader(0, false))
	b.text(unix.IFLA_IFNAME, name)
	if err := h.do(&b); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// Get returns the device of this name, or NotFound.
func (h *Handle) Get(name string) (Device, error) {
	if name == "" || len(name) > MaxName || strings.ContainsAny(name, "/ \t\n") {
		return Device{}, fault.New(fault.Invalid, "find device %q: a name has 1 to %d bytes, no slash, no space", name, MaxName)
	}
	var b batch
	b.begin("find device "+name, unix.RTM_GETLINK, 0, linkHeader(0, false))
	b.text(unix.IFLA_IFNAME, name)
	h.mu.Lock()
	defer h.mu.Unlock()
	seq, err := h.send(&b)
	if err != nil {
		return Device{}, err
	}
	var found *Device
	for found == nil {
		err := h.receive(func(m message) error {
			switch {
			case m.seq != seq:
			case m.kind == unix.NLMSG_ERROR:
				return answer(b.what[0], m.payload, m.flags&unix.NLM_F_CAPPED != 0)
			case m.kind == unix.RTM_NEWLINK:
				d := device(m.payload)
				found = &d
			}
			return nil
		})
		if err != nil {
			return Device{}, err
		}
	}
	return *found, nil
}

// List returns every device of the namespace.
func (h *Handle) List() ([]Device, error) {
	var b batch
	b.begin("list devices", unix.RTM_GETLINK, unix.NLM_F_DUMP, linkHeader(0, false))
	seen := map[int]Device{}
	err := h.dump(&b, func(payload []byte) {
		d := device(payload)
		seen[d.Index] = d
	})
	if err != nil {
		return nil, err
	}
	out := make([]Device, 0, len(seen))
	for _, d := range seen {
		out = append(out, d)
	}
	return out, nil
}

// device reads struct ifinfomsg and the attributes behind it.
func device(payload []byte) Device {
	if len(payload) < unix.SizeofIfInfomsg {
		return Device{}
	}
	d := Device{
		Index: int(int32(binary.NativeEndian.Uint32(payload[4:]))),
		Up:    binary.NativeEndian.Uint32(payload[8:])&unix.IFF_UP != 0,
	}
	attributes(payload[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
		switch {
		case kind == unix.IFLA_IFNAME:
			d.Name = unix.ByteSliceToString(value)
		case kind == unix.IFLA_MTU && len(value) == 4:
			d.MTU = int(binary.NativeEndian.Uint32(value))
		case kind == unix.IFLA_MASTER && len(value) == 4:
			d.Master = int(binary.NativeEndian.Uint32(value))
		case kind == unix.IFLA_ADDRESS:
			d.MAC = bytes.Clone(value)
		case kind == unix.IFLA_LINKINFO:
			attributes(value, func(kind uint16, value []byte) {
				if kind == unix.IFLA_INFO_KIND {
					d.Kind = unix.ByteSliceToString(value)
				}
			})
		}
	})
	return d
}

// Address is one address of a device, with the length of its on-link prefix.
type Address struct {
	Index  int
	Prefix netip.Prefix
}

// SetAddress gives the device this address; the kernel adds the on-link route. Repeat: safe.
func (h *Handle) SetAddress(index int, p netip.Prefix) error {
	var b batch
	b.address("give address "+p.String(), unix.RTM_NEWADDR, set|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, index, p)
	return h.do(&b)
}

// DropAddress takes the address away. Repeat: safe.
func (h *Handle) DropAddress(index int, p netip.Prefix) error {
	var b batch
	b.address("drop address "+p.String(), unix.RTM_DELADDR, set, index, p)
	if err := h.do(&b); err != nil && !strings.Contains(err.Error(), unix.EADDRNOTAVAIL.Error()) {
		return err
	}
	return nil
}

func (b *batch) address(what string, kind, flags uint16, index int, p netip.Prefix) {
	fixed := make([]byte, unix.SizeofIfAddrmsg)
	fixed[0] = family(p.Addr())
	fixed[1] = uint8(p.Bits())
	binary.NativeEndian.PutUint32(fixed[4:], uint32(index))
	b.begin(what, kind, flags, fixed)
	b.attr(unix.IFA_LOCAL, p.Addr().AsSlice())
	b.attr(unix.IFA_ADDRESS, p.Addr().AsSlice())
}

// Addresses returns every address of the namespace.
func (h *Handle) Addresses() ([]Address, error) {
	var b batch
	b.begin("list addresses", unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg))
	seen := map[Address]bool{}
	err := h.dump(&b, func(payload []byte) {
		if len(payload) < unix.SizeofIfAddrmsg {
			return
		}
		a := Address{Index: int(binary.NativeEndian.Uint32(payload[4:]))}
		bits := int(payload[1])
		attributes(payload[unix.SizeofIfAddrmsg:], func(kind uint16, value []byte) {
			// IPv4 always has IFA_LOCAL (IFA_ADDRESS is then the peer's); IPv6 usually has IFA_ADDRESS alone.
			if addr, ok := netip.AddrFromSlice(value); ok && (kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && !a.Prefix.IsValid()) {
				a.Prefix = netip.PrefixFrom(addr, bits)
			}
		})
		seen[a] = true
	})
	if err != nil {
		return nil, err
	}
	out := make([]Address, 0, len(seen))
	for a := range seen {
		out = append(out, a)
	}
	return out, nil
}

// SetupInside raises a device of the Handle's namespace, gives it the address as one that is alone on its link, and
// routes everything through the gateway, in one datagram. The gateway needs no common subnet: it is reached on the link.
// It is for a namespace that holds one pod: the route replaces any other default. Repeat: safe.
func (h *Handle) SetupInside(device string, addr, gateway netip.Addr) error {
	d, err := h.Get(device)
	if err != nil {
		return err
	}
	var b batch
	b.begin("bring "+device+" up", unix.RTM_NEWLINK, set, linkHeader(d.Index, true))
	p := netip.PrefixFrom(addr, addr.BitLen())
	b.address("give "+device+" address "+p.String(), unix.RTM_NEWADDR, set|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, d.Index, p)
	b.route(fmt.Sprintf("route to gateway %s", gateway), d.Index, unix.RT_SCOPE_LINK, netip.PrefixFrom(gateway, gateway.BitLen()))
	b.route(fmt.Sprintf("route by default through %s", gateway), d.Index, unix.RT_SCOPE_UNIVERSE, netip.PrefixFrom(zero(gateway), 0))
	b.attr(unix.RTA_GATEWAY, gateway.AsSlice())
	return h.do(&b)
}

// route begins a route of the main table.
func (b *batch) route(what string, index int, scope uint8, to netip.Prefix) {
	fixed := make([]byte, unix.SizeofRtMsg)
	fixed[0] = family(to.Addr())
	fixed[1] = uint8(to.Bits())
	fixed[4] = unix.RT_TABLE_MAIN
	fixed[5] = unix.RTPROT_STATIC
	fixed[6] = scope
	fixed[7] = unix.RTN_UNICAST
	b.begin(what, unix.RTM_NEWROUTE, set|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, fixed)
	if to.Bits() > 0 {
		b.attr(unix.RTA_DST, to.Addr().AsSlice())
	}
	b.u32(unix.RTA_OIF, uint32(index))
}

// zero is the unspecified address of a's family.
func zero(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
