package plan

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"strings"
	"time"
)

// Rule says what happens to a packet for which all of When hold: a rule of the kernel in our own words, which act writes
// down and Trace follows.
type Rule struct {
	When []Cond
	Do   Do

	Chain  Chain          // Goto, Jump
	Chains []Chain        // Choose
	Set    Set            // Follow, Pick
	N      int            // Pick: slots; Mark, Masquerade: bit of the packet mark
	Map    string         // Recall, Remember: of clients
	Keep   time.Duration  // Recall, Remember: how long after the last connection
	To     netip.AddrPort // Send, Remember; Recall's fill-in
}

// Do is what a rule does. Follow, Remember and Mark go on with the next rule.
type Do uint8

const (
	Goto       Do = iota // Chain, and never come back
	Jump                 // Chain, and come back
	Return               // to the chain that jumped here
	Discard              // the packet
	Follow               // the verdict that Set has for the packet, if it has one
	Mark                 // say "masquerade" to Masquerade
	Masquerade           // hide the source behind the node's address, and take the mark off
	Reset                // answer with a TCP reset
	Reject               // answer "port unreachable"
	Pick                 // send to one of the N slots that Set has for the packet
	Send                 // send to To
	Choose               // go to one of Chains, at random
	// Recall sends to the endpoint that Map has for the client, if it has one, and begins its time anew. The kernel wants
	// an endpoint with that (it is written only if the entry ran out between two steps of the rule): To is one.
	Recall
	Remember // that the client goes to To
)

// Cond is a question about a packet.
type Cond struct {
	Is     Is
	Not    bool         // turn the answer around; for In, From and To only
	Set    Set          // In
	Prefix netip.Prefix // From, To
	Device string       // FromDevice, FromDevices
	Bit    int          // Marked: of the packet mark
}

// Is is the kind of a question.
type Is uint8

const (
	New         Is = iota // the first packet of a connection
	Invalid               // connection tracking makes nothing of it
	Translated            // its destination was changed
	Marked                // by Mark
	TCP                   // its protocol
	In                    // the packet is in Set
	From                  // its source is in Prefix
	To                    // its destination is in Prefix
	FromHere              // its source is an address of this node
	ToHere                // its destination is
	FromDevice            // it came by Device
	FromDevices           // it came by a device whose name starts with Device
)

// Hook is where the kernel calls a chain.
type Hook uint8

const (
	NoHook              Hook = iota
	FirewallPrerouting       // before addresses change
	FirewallOutput           // the same for packets of this node
	TranslatePrerouting      // destinations
	TranslateOutput
	TranslatePostrouting // sources
	FilterInput
	FilterForward
	FilterOutput
)

// ChainRules is a chain with all its rules.
type ChainRules struct {
	Name  Chain
	Hook  Hook
	Rules []Rule
}

// Hash tells chains apart by what they do; it is kept in the kernel, with the chain.
func (c *ChainRules) Hash() uint64 {
	var b strings.Builder
	fmt.Fprint(&b, rulesVersion, c.Hook)
	for i := range c.Rules {
		b.WriteString(c.Rules[i].String())
		b.WriteByte('\n')
	}
	return hash(b.String())
}

// EmptyHash is the hash of a chain without rules.
func EmptyHash() uint64 { return emptyChain }

var emptyChain = (&ChainRules{}).Hash()

// rulesVersion changes when act writes the same rule otherwise.
const rulesVersion = 2

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}

// String prints a condition nearly as `nft list` does.
func (c Cond) String() string {
	not := ""
	if c.Not {
		not = "!= "
	}
	switch c.Is {
	case New:
		return "ct state new"
	case Invalid:
		return "ct state invalid"
	case Translated:
		return "ct status dnat"
	case Marked:
		return fmt.Sprintf("meta mark & 0x%x", uint32(1)<<c.Bit)
	case TCP:
		return "tcp"
	case In:
		return not + "@" + c.Set.String()
	case From:
		return "saddr " + not + c.Prefix.String()
	case To:
		return "daddr " + not + c.Prefix.String()
	case FromHere:
		return "saddr local"
	case ToHere:
		return "daddr local"
	case FromDevice:
		return fmt.Sprintf("iifname %q", c.Device)
	case FromDevices:
		return fmt.Sprintf("iifname %q", c.Device+"*")
	}
	return "?"
}

// String prints a rule nearly as `nft list` does.
func (r *Rule) String() string {
	var b strings.Builder
	for _, c := range r.When {
		b.WriteString(c.String())
		b.WriteByte(' ')
	}
	switch r.Do {
	case Goto:
		b.WriteString("goto " + string(r.Chain))
	case Jump:
		b.WriteString("jump " + string(r.Chain))
	case Return:
		b.WriteString("return")
	case Discard:
		b.WriteString("drop")
	case Follow:
		b.WriteString("vmap @" + r.Set.String())
	case Mark:
		fmt.Fprintf(&b, "meta mark set meta mark | 0x%x", uint32(1)<<r.N)
	case Masquerade:
		fmt.Fprintf(&b, "meta mark set meta mark & 0x%x masquerade fully-random", ^(uint32(1) << r.N))
	case Reset:
		b.WriteString("reject with tcp reset")
	case Reject:
		b.WriteString("reject")
	case Pick:
		fmt.Fprintf(&b, "dnat to one of %d in @%v", r.N, r.Set)
	case Send:
		fmt.Fprintf(&b, "dnat to %v", r.To)
	case Choose:
		fmt.Fprintf(&b, "goto one of %v", r.Chains)
	case Recall:
		fmt.Fprintf(&b, "dnat to the client's in @%s for %v, else %v", r.Map, r.Keep, r.To)
	case Remember:
		fmt.Fprintf(&b, "remember in @%s for %v: %v", r.Map, r.Keep, r.To)
	}
	return b.String()
}
