package nft

import (
	"strings"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Need is a kernel feature that a table uses.
type Need struct {
	Config string // what the kernel must be built with
	build  func(*Batch)
}

// probeTable exists only inside transactions that are never committed.
const probeTable = "worknode-probe"

func rule(x ...Expr) func(*Batch) {
	return func(b *Batch) {
		b.AddChain("probe", nil)
		b.AddRule("probe", x...)
	}
}

// Needs lists what a NAT table of family fam needs, one feature each.
func Needs(fam Family) []Need {
	suffix, size := "IPV4", uint32(4)
	if fam == IPv6 {
		suffix, size = "IPV6", 16
	}
	return []Need{
		{"CONFIG_NF_TABLES_" + suffix, func(*Batch) {}},
		{"CONFIG_NFT_NAT", func(b *Batch) {
			b.AddChain("probe", &Hook{Type: "nat", Num: unix.NF_INET_PRE_ROUTING, Priority: -100})
			b.AddRule("probe", Payload(NetworkHeader, 0, size, R0), Payload(TransportHeader, 2, 2, R0+4), DNAT(fam, R0, R0+4))
		}},
		{"CONFIG_NFT_MASQ", func(b *Batch) {
			b.AddChain("probe", &Hook{Type: "nat", Num: unix.NF_INET_POST_ROUTING, Priority: 100})
			b.AddRule("probe", Masquerade())
		}},
		{"CONFIG_NFT_NUMGEN", rule(Random(2, R0))},
		{"CONFIG_NFT_CT", rule(CtState(R0))},
		{"CONFIG_NFT_REJECT and CONFIG_NFT_REJECT_" + suffix, func(b *Batch) {
			b.AddChain("probe", &Hook{Type: "filter", Num: unix.NF_INET_LOCAL_IN})
			b.AddRule("probe", Reject(fam))
		}},
	}
}

// Missing tells which of the needs this kernel does not have. It asks the kernel by transactions that have no end,
// which are checked and then dropped, so nothing is ever changed. nil means that nothing is missing.
// Errors: Unsupported, naming the kernel options.
func (c *Conn) Missing(fam Family) error {
	var lacks []string
	var why error
	for _, n := range Needs(fam) {
		b := NewBatch(fam, probeTable)
		b.AddTable(0, "")
		n.build(b)
		b.ask()
		switch err := c.run(b); {
		case err == nil, fault.Is(err, fault.Temporary), fault.Is(err, fault.Denied):
		default:
			lacks, why = append(lacks, n.Config), err
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	if len(lacks) == len(Needs(fam)) { // not even an empty table
		lacks = []string{"CONFIG_NF_TABLES"}
	}
	return fault.Hint(fault.New(fault.Unsupported, "this kernel lacks %s: %w", strings.Join(lacks, ", "), why),
		"load the modules, as modprobe nf_tables does, or use a kernel built with them")
}
