package nft

import (
	"encoding/binary"
	"io"
	"slices"

	"golang.org/x/sys/unix"
)

// Family is the protocol family a table belongs to.
type Family uint8

const (
	IPv4 Family = unix.NFPROTO_IPV4
	IPv6 Family = unix.NFPROTO_IPV6
)

// Table flags; see Batch.AddTable. Source: linux nf_tables.h, enum nft_table_flags.
const (
	FlagOwner   = 0x2 // only the socket that made it may change it (kernel 5.12)
	FlagPersist = 0x4 // the table outlives its owner and may be claimed by the next one (kernel 6.9)
)

// maxListBytes bounds one message's element list: an attribute's length is 16 bits, and overflows silently.
const (
	maxElems     = 400
	maxListBytes = 60000
)

// op remembers what a message was for, so that an error can name it.
type op struct {
	table      string
	fam        Family
	verb, name string
	n          int
}

// Batch collects the operations of one transaction on one table, or on several: see On. The zero value is not usable; see NewBatch.
// Operations take effect in order, all at once, at Conn.Commit. Objects are named, never numbered, so a batch may be
// built before the objects it names exist, as long as an earlier operation of it makes them.
type Batch struct {
	encoder
	fam   Family
	table string
	ops   []op
	start int    // of the message being written
	setID uint32 // of the last set made
	anon  uint32 // of the anonymous set that elements go to; zero: they go by name
}

// NewBatch returns an empty transaction on the named table.
func NewBatch(fam Family, table string) *Batch {
	b := &Batch{fam: fam, table: table}
	b.control(unix.NFNL_MSG_BATCH_BEGIN)
	return b
}

// On makes the operations that follow be about another table.
func (b *Batch) On(fam Family, table string) { b.fam, b.table = fam, table }

// Len is the number of messages in the batch; zero means that Commit has nothing to do.
func (b *Batch) Len() int { return len(b.ops) }

// Bytes is the size of the batch on the wire.
func (b *Batch) Bytes() int { return len(b.b) }

// header appends nlmsghdr and nfgenmsg. Sequence numbers count from 1 within the batch: answers are drained before
// the next one is sent, so they need not differ between batches.
func (e *encoder) header(typ, flags uint16, seq uint32, fam Family, res uint16) int {
	at := len(e.b)
	e.b = append(e.b, make([]byte, 20)...)
	h := e.b[at:]
	binary.NativeEndian.PutUint16(h[4:], typ)
	binary.NativeEndian.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(h[8:], seq)
	h[16] = byte(fam)
	binary.BigEndian.PutUint16(h[18:], res)
	return at
}

func (e *encoder) finish(at int) {
	binary.NativeEndian.PutUint32(e.b[at:], uint32(len(e.b)-at))
}

func (b *Batch) control(typ uint16) {
	at := b.header(typ, 0, uint32(len(b.ops)+1), unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.finish(at)
}

func (b *Batch) begin(typ, flags uint16, o op) {
	o.fam, o.table = b.fam, b.table
	b.ops = append(b.ops, o)
	b.start = b.header(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, uint32(len(b.ops)+1), b.fam, 0)
}

func (b *Batch) end() { b.finish(b.start) }

// AddTable makes the table, or claims it if it is there without an owner. comment is what `nft list` shows (at most
// 128 bytes); it is written only when the table is made.
func (b *Batch) AddTable(flags uint32, comment string) {
	b.begin(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, op{verb: "add table", name: b.table})
	b.str(unix.NFTA_TABLE_NAME, b.table)
	b.u32(unix.NFTA_TABLE_FLAGS, flags)
	if comment != "" {
		b.bytes(tableUserdata, commentData(comment))
	}
	b.end()
}

// DelTable removes the table and all in it. Commit fails with NotFound if it is not there.
func (b *Batch) DelTable() {
	b.begin(unix.NFT_MSG_DELTABLE, 0, op{verb: "delete table", name: b.table})
	b.str(unix.NFTA_TABLE_NAME, b.table)
	b.end()
}

// Hook attaches a base chain to the packet path.
type Hook struct {
	Type     string // "nat" or "filter"
	Num      uint32 // unix.NF_INET_*
	Priority int32
}

// AddChain makes a chain; hook is nil for one that is only jumped to. The policy of a base chain is accept.
// A chain that is there already keeps its rules.
func (b *Batch) AddChain(name string, hook *Hook) {
	b.begin(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, op{verb: "add chain", name: name})
	b.str(unix.NFTA_CHAIN_TABLE, b.table)
	b.str(unix.NFTA_CHAIN_NAME, name)
	if hook != nil {
		at := b.open(unix.NFTA_CHAIN_HOOK)
		b.u32(unix.NFTA_HOOK_HOOKNUM, hook.Num)
		b.u32(unix.NFTA_HOOK_PRIORITY, uint32(hook.Priority))
		b.close(at)
		b.u32(unix.NFTA_CHAIN_POLICY, 1) // NF_ACCEPT
		b.str(unix.NFTA_CHAIN_TYPE, hook.Type)
	}
	b.end()
}

// FlushChain removes the rules of a chain. Commit fails with NotFound if there is no such chain.
func (b *Batch) FlushChain(name string) {
	b.begin(unix.NFT_MSG_DELRULE, 0, op{verb: "flush chain", name: name})
	b.str(unix.NFTA_RULE_TABLE, b.table)
	b.str(unix.NFTA_RULE_CHAIN, name)
	b.end()
}

// DelChain removes a chain and its rules. Commit fails with Busy if a rule or an element still leads to it.
func (b *Batch) DelChain(name string) {
	b.FlushChain(name)
	b.begin(unix.NFT_MSG_DELCHAIN, 0, op{verb: "delete chain", name: name})
	b.str(unix.NFTA_CHAIN_TABLE, b.table)
	b.str(unix.NFTA_CHAIN_NAME, name)
	b.end()
}

// AddRule appends a rule to a chain.
func (b *Batch) AddRule(chain string, exprs ...Expr) { b.AddRuleNoted(chain, "", exprs...) }

// AddRuleNoted is AddRule with a comment (at most 128 bytes), which the kernel keeps and `nft list` shows.
func (b *Batch) AddRuleNoted(chain, comment string, exprs ...Expr) {
	b.begin(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, op{verb: "add rule to chain", name: chain})
	b.str(unix.NFTA_RULE_TABLE, b.table)
	b.str(unix.NFTA_RULE_CHAIN, chain)
	list := b.open(unix.NFTA_RULE_EXPRESSIONS)
	for _, x := range exprs {
		at := b.open(unix.NFTA_LIST_ELEM)
		b.str(unix.NFTA_EXPR_NAME, x.Name)
		data := b.open(unix.NFTA_EXPR_DATA)
		x.encode(&b.encoder)
		b.close(data)
		b.close(at)
	}
	b.close(list)
	if comment != "" {
		b.bytes(unix.NFTA_RULE_USERDATA, commentData(comment))
	}
	b.end()
}

// Set describes a set or map.
type Set struct {
	Name string
	Key  []Type
	Data []Type // empty for a set
	// Verdicts says that the map leads to chains; Data is empty then.
	Verdicts bool
	// Dynamic says that rules add elements, which vanish after a time; Size bounds them.
	Dynamic bool
	Size    uint32
	// Ranges says that elements are ranges of the key, first to last, in each of its fields. Each change of such a set
	// copies it whole.
	Ranges bool
}

// AddSet makes a set or map.
func (b *Batch) AddSet(s Set) {
	b.setID++
	b.begin(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, op{verb: "add set", name: s.Name})
	b.str(unix.NFTA_SET_TABLE, b.table)
	b.str(unix.NFTA_SET_NAME, s.Name)
	var flags uint32
	if s.Verdicts || len(s.Data) > 0 {
		flags |= unix.NFT_SET_MAP
	}
	if s.Name == anonymousMap {
		flags |= unix.NFT_SET_ANONYMOUS | unix.NFT_SET_CONSTANT
	}
	if s.Dynamic {
		flags |= unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL
	}
	if s.Ranges {
		flags |= unix.NFT_SET_INTERVAL
		if len(s.Key) > 1 {
			flags |= setConcat
		}
	}
	b.u32(unix.NFTA_SET_FLAGS, flags)
	id, size := concat(s.Key)
	b.u32(unix.NFTA_SET_KEY_TYPE, id)
	b.u32(unix.NFTA_SET_KEY_LEN, size)
	switch {
	case s.Verdicts:
		b.u32(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT)
	case len(s.Data) > 0:
		id, size := concat(s.Data)
		b.u32(unix.NFTA_SET_DATA_TYPE, id)
		b.u32(unix.NFTA_SET_DATA_LEN, size)
	}
	if s.Size > 0 || s.Ranges && len(s.Key) > 1 {
		desc := b.open(unix.NFTA_SET_DESC)
		if s.Size > 0 {
			b.u32(unix.NFTA_SET_DESC_SIZE, s.Size)
		}
		if s.Ranges && len(s.Key) > 1 {
			fields := b.open(setDescConcat)
			for _, k := range s.Key {
				one := b.open(unix.NFTA_LIST_ELEM)
				b.u32(setFieldLen, k.size)
				b.close(one)
			}
			b.close(fields)
		}
		b.close(desc)
	}
	b.u32(unix.NFTA_SET_ID, b.setID)
	b.end()
}

// anonymousMap is the name pattern by which the kernel makes up a name.
const anonymousMap = "__map%d"

// AddChoice appends a rule that goes to one of the chains at random. It makes an anonymous map, which lives and dies with
// the rule.
func (b *Batch) AddChoice(chain, comment string, to []string) {
	b.AddSet(Set{Name: anonymousMap, Key: []Type{TypeMark}, Verdicts: true})
	b.anon = b.setID
	elems := make([]Elem, len(to))
	for i, name := range to {
		elems[i] = Elem{Key: Host32(uint32(i)), Verdict: &Verdict{Code: Goto, Chain: name}}
	}
	b.AddElems(anonymousMap, elems)
	id := b.anon
	b.anon = 0
	b.AddRuleNoted(chain, comment, Random(uint32(len(to)), R0), Expr{"lookup", func(e *encoder) {
		e.str(unix.NFTA_LOOKUP_SET, anonymousMap)
		e.u32(unix.NFTA_LOOKUP_SET_ID, id)
		e.u32(unix.NFTA_LOOKUP_SREG, uint32(R0))
		e.u32(unix.NFTA_LOOKUP_DREG, unix.NFT_REG_VERDICT)
	}})
}

// DelSet removes a set or map with its elements. Commit fails with Busy while a rule uses it, with NotFound if it is not
// there.
func (b *Batch) DelSet(name string) {
	b.begin(unix.NFT_MSG_DELSET, 0, op{verb: "delete set", name: name})
	b.str(unix.NFTA_SET_TABLE, b.table)
	b.str(unix.NFTA_SET_NAME, name)
	b.end()
}

// Verdict says where a packet goes.
type Verdict struct {
	Code  int32 // one of the constants below
	Chain string
}

// Verdict codes. Source: linux netfilter.h and nf_tables.h.
const (
	Drop   int32 = 0
	Jump   int32 = -3
	Goto   int32 = -4
	Return int32 = -5
)

// Elem is one element of a set or map: Data is nil for sets and verdict maps, Verdict for all others. Each field of a
// concatenated key or value is padded to four bytes.
type Elem struct {
	Key     []byte
	KeyEnd  []byte // the last key of a range, in sets with Ranges
	Data    []byte
	Verdict *Verdict
}

// AddElems adds elements, a few hundred a message. An element whose key is there with another value fails with
// Exists: there is no update, delete it first in the same batch.
func (b *Batch) AddElems(set string, elems []Elem) {
	b.elems(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "add elements to set", set, elems)
}

// DelElems removes elements by key. One that is not there fails the batch with NotFound.
func (b *Batch) DelElems(set string, elems []Elem) {
	b.elems(unix.NFT_MSG_DELSETELEM, 0, "delete elements from set", set, elems)
}

// DropElems removes elements by key, those of them that are there. Needs: kernel 6.3; older ones refuse the batch with
// EINVAL.
func (b *Batch) DropElems(set string, elems []Elem) {
	b.elems(msgDestroySetElem, 0, "drop elements from set", set, elems)
}

func (b *Batch) elems(typ, flags uint16, verb, set string, elems []Elem) {
	for len(elems) > 0 {
		b.begin(typ, flags, op{verb: verb, name: set})
		b.str(unix.NFTA_SET_ELEM_LIST_TABLE, b.table)
		b.str(unix.NFTA_SET_ELEM_LIST_SET, set)
		if b.anon != 0 {
			b.u32(unix.NFTA_SET_ELEM_LIST_SET_ID, b.anon)
		}
		list := b.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		n := 0
		for n < len(elems) && n < maxElems && len(b.b)-list < maxListBytes {
			e := elems[n]
			at := b.open(unix.NFTA_LIST_ELEM)
			b.value(unix.NFTA_SET_ELEM_KEY, e.Key)
			if e.KeyEnd != nil {
				b.value(setElemKeyEnd, e.KeyEnd)
			}
			if typ == unix.NFT_MSG_NEWSETELEM {
				if e.Verdict != nil {
					b.verdict(unix.NFTA_SET_ELEM_DATA, *e.Verdict)
				} else if e.Data != nil {
					b.value(unix.NFTA_SET_ELEM_DATA, e.Data)
				}
			}
			b.close(at)
			n++
		}
		b.close(list)
		b.end()
		b.ops[len(b.ops)-1].n = n
		elems = elems[n:]
	}
}

// WriteTo writes what the batch holds so far, as sent to the kernel: equal operations give equal bytes.
func (b *Batch) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(b.b)
	return int64(n), err
}

// Spoil inserts an operation that the kernel refuses before the one with index at (or at the end): tests see with it that
// a batch which fails anywhere changes nothing.
func (b *Batch) Spoil(at int) {
	x := NewBatch(b.fam, b.table)
	x.b = x.b[:0]
	x.begin(unix.NFT_MSG_DELSET, 0, op{verb: "spoil", name: "nothing"})
	x.str(unix.NFTA_SET_TABLE, b.table)
	x.str(unix.NFTA_SET_NAME, "no such set")
	x.end()
	// Find the message, and number all that follow anew.
	cut := 0
	for range at + 1 { // one more for the beginning of the batch
		cut += align4(int(binary.NativeEndian.Uint32(b.b[cut:])))
	}
	b.b = slices.Insert(b.b, cut, x.b...)
	b.ops = slices.Insert(b.ops, at, x.ops[0])
	seq := uint32(1)
	for i := 0; i < len(b.b); i += align4(int(binary.NativeEndian.Uint32(b.b[i:]))) {
		binary.NativeEndian.PutUint32(b.b[i+8:], seq)
		b.start = i
		seq++
	}
}
