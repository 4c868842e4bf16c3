package network

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/nft"
)

// Offsets in the IPv4 header. Source: RFC 791, section 3.1.
const (
	sourceAt      = 12
	destinationAt = 16
	icmpRedirect  = 5 // RFC 792
)

// tableName is our nftables table; each bridge has its own, so that nodes side by side do not meet.
func tableName(bridge string) string { return "worknode-" + bridge }

// setRules writes the table, replacing what a predecessor left, in one transaction.
//
//   - Packets from pods to elsewhere leave under the node's address.
//   - The node sends pods no ICMP redirects. It would, as a pod's way to the pod next door enters and leaves by the same
//     device, and a pod that obeyed would go round the node's translation of Service addresses.
func (b *Bridge) setRules() error {
	write := func(flags uint32) error {
		t := nft.NewBatch(nft.IPv4, b.table)
		if _, err := b.rules.Table(nft.IPv4, b.table); err == nil {
			t.AddTable(flags, "") // claim it: an owned table obeys nobody else
			t.DelTable()
		} else if !fault.Is(err, fault.NotFound) {
			return err
		}
		t.AddTable(flags, "worknode: pods on bridge "+b.name)
		t.AddChain("leave", &nft.Hook{Type: "nat", Num: unix.NF_INET_POST_ROUTING, Priority: 100})
		t.AddRule("leave", append(append(inside(sourceAt, b.subnet, true), inside(destinationAt, b.subnet, false)...),
			append(inside(destinationAt, multicast, false), nft.Masquerade())...)...)
		t.AddChain("answer", &nft.Hook{Type: "filter", Num: unix.NF_INET_LOCAL_OUT, Priority: 0})
		t.AddRule("answer", append(inside(destinationAt, b.subnet, true),
			nft.L4Proto(nft.R0), nft.Equal(nft.R0, []byte{unix.IPPROTO_ICMP}),
			nft.Payload(nft.TransportHeader, 0, 1, nft.R0), nft.Equal(nft.R0, []byte{icmpRedirect}),
			nft.To(nft.Verdict{Code: nft.Drop}))...)
		return b.rules.Commit(t)
	}
	// Owned, the table survives other people's `flush ruleset`; persistent, it survives us. Needs kernel 6.9.
	err := write(nft.FlagOwner | nft.FlagPersist)
	if fault.Is(err, fault.Denied) || err == nil {
		return err
	}
	return write(0)
}

var multicast = netip.MustParsePrefix("224.0.0.0/4")

// inside goes on if the address at the offset is, or is not, in the prefix.
func inside(at uint32, p netip.Prefix, is bool) []nft.Expr {
	mask := make([]byte, 4)
	for bit := range p.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	test := nft.NotEqual
	if is {
		test = nft.Equal
	}
	return []nft.Expr{
		nft.Payload(nft.NetworkHeader, at, 4, nft.R0),
		nft.Bitwise(nft.R0, mask, make([]byte, 4)),
		test(nft.R0, p.Masked().Addr().AsSlice()),
	}
}

// removeTable deletes a table; an absent one is no error.
func removeTable(c *nft.Conn, fam nft.Family, table string) error {
	have, err := c.Table(fam, table)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	t := nft.NewBatch(fam, table)
	t.AddTable(have.Flags, "")
	t.DelTable()
	return c.Commit(t)
}
