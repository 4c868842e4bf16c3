package nft

import (
	"encoding/binary"
	"io"

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
	verb, name string
	n          int
}

// Batch collects the operations of one transaction on one table. The zero value is not usable; see NewBatch.
// Operations take effect in order, all at once, at Conn.Commit. Objects are named, never numbered, so a batch may be
// built before the objects it names exist, as long as an earlier operation of it makes them.
type Batch struct {
	encoder
	fam   Family
	table string
	ops   []op
	start int // of the message being written
	setID uint32
}

// NewBatch returns an empty transaction on the named table.
func NewBatch(fam Family, table string) *Batch {
	b := &Batch{fam: fam, table: table}
	b.control(unix.NFNL_MSG_BATCH_BEGIN)
	return b
}

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

// DelChain removes a chain and its rules. Commit fails with Busy if a rule or an element still leads to it.
func (b *Batch) DelChain(name string) {
	b.begin(unix.NFT_MSG_DELRULE, 0, op{verb: "flush chain", name: name})
	b.str(unix.NFTA_RULE_TABLE, b.table)
	b.str(unix.NFTA_RULE_CHAIN, name)
	b.end()
	b.begin(unix.NFT_MSG_DELCHAIN, 0, op{verb: "delete chain", name: name})
	b.str(unix.NFTA_CHAIN_TABLE, b.table)
	b.str(unix.NFTA_CHAIN_NAME, name)
	b.end()
}

// AddRule appends a rule to a chain.
func (b *Batch) AddRule(chain string, exprs ...Expr) {
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
	b.end()
}

// Set describes a set or map.
type Set struct {
	Name string
	Key  []Type
	Data []Type // empty for a set
	// Verdicts says that the map leads to chains; Data is empty then.
	Verdicts bool
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
	b.u32(unix.NFTA_SET_ID, b.setID)
	b.end()
}

// Verdict says where a packet goes.
type Verdict struct {
	Code  int32 // one of the constants below
	Chain string
}

// Verdict codes. Source: linux netfilter.h and nf_tables.h.
const (
	Drop int32 = 0
	Jump int32 = -3
	Goto int32 = -4
)

// Elem is one element of a set or map: Data is nil for sets and verdict maps, Verdict for all others. Each field of a
// concatenated key or value is padded to four bytes.
type Elem struct {
	Key     []byte
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

func (b *Batch) elems(typ, flags uint16, verb, set string, elems []Elem) {
	for len(elems) > 0 {
		b.begin(typ, flags, op{verb: verb, name: set})
		b.str(unix.NFTA_SET_ELEM_LIST_TABLE, b.table)
		b.str(unix.NFTA_SET_ELEM_LIST_SET, set)
		list := b.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		n := 0
		for n < len(elems) && n < maxElems && len(b.b)-list < maxListBytes {
			e := elems[n]
			at := b.open(unix.NFTA_LIST_ELEM)
			b.value(unix.NFTA_SET_ELEM_KEY, e.Key)
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
