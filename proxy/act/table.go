// Package act carries out the plan on the kernel: it writes a plan.Delta as one nftables transaction and reads the
// table back (look.go). It decides nothing. Every call may be repeated after a look.
package act

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/nft"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// layoutVersion names the meaning of the table's sets; the rules themselves are covered by a hash.
const layoutVersion = 1

// Table is our table of one family in the network namespace of conn. It belongs to one goroutine.
type Table struct {
	conn     *nft.Conn
	layout   *layout
	flags    uint32
	comment  string // identifies layout and rules; kept in the kernel with the table
	verdicts map[plan.Chain]*nft.Verdict
}

// Open prepares a table; nothing in the kernel changes yet.
func Open(conn *nft.Conn, fam state.Family, static Static) *Table {
	l := newLayout(fam, static)
	b := nft.NewBatch(l.fam, TableName)
	l.write(b)
	h := fnv.New64a()
	_, _ = b.WriteTo(h) // a hash takes all
	flags := uint32(0)
	if conn.OwnedTables(l.fam) {
		flags = nft.FlagOwner | nft.FlagPersist
	}
	return &Table{
		conn: conn, layout: l, flags: flags,
		comment:  fmt.Sprintf("worknode proxy, layout %d, rules %016x", layoutVersion, h.Sum64()),
		verdicts: map[plan.Chain]*nft.Verdict{},
	}
}

// Apply makes one transaction of a delta, on a table that Look found Usable or Replace made.
// Errors: as nft.Conn.Commit; nothing has changed then. Crash: all of it happened or nothing; Look tells.
func (t *Table) Apply(d *plan.Delta) error {
	b := nft.NewBatch(t.layout.fam, TableName)
	t.write(b, d)
	return t.conn.Commit(b)
}

// Replace puts a new table in the place of whatever has its name, in one transaction: established connections and new
// ones never meet a moment without rules. d must stem from plan.Full on an empty table.
func (t *Table) Replace(exists bool, d *plan.Delta) error {
	err := t.replace(exists, d)
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unsupported) || errors.Is(err, unix.EINVAL) {
		if missing := t.conn.Missing(t.layout.fam); missing != nil {
			return missing
		}
	}
	return hint(err)
}

// Owned tells whether the kernel keeps others from changing the table. If not, Watch tells when they do.
func (t *Table) Owned() bool { return t.flags != 0 }

// Watch calls changed when somebody else changes the table, until ctx ends.
func (t *Table) Watch(ctx context.Context, changed func()) error {
	return nft.Watch(ctx, TableName, t.conn.Port(), changed)
}

func (t *Table) replace(exists bool, d *plan.Delta) error {
	b := nft.NewBatch(t.layout.fam, TableName)
	if exists {
		b.DelTable()
	}
	b.AddTable(t.flags, t.comment)
	t.layout.write(b)
	t.write(b, d)
	return t.conn.Commit(b)
}

// hint tells what to do when the kernel keeps us out.
func hint(err error) error {
	if fault.Is(err, fault.Denied) {
		return fault.Hint(err, "either CAP_NET_ADMIN is missing, or another worknode proxy runs in this network namespace")
	}
	return err
}

// write encodes a delta: make chains, add, replace, remove.
func (t *Table) write(b *nft.Batch, d *plan.Delta) {
	for _, c := range d.Chains {
		b.AddChain(chainName(c), nil)
		b.AddRule(chainName(c), t.layout.pick(c)...)
	}
	t.bySet(d.Add, b.AddElems)
	t.bySet(d.Replace, func(set string, e []nft.Elem) {
		b.DelElems(set, e)
		b.AddElems(set, e)
	})
	t.bySet(d.Del, b.DelElems)
}

// bySet calls do with each run of elements that are in one set.
func (t *Table) bySet(elems []plan.Elem, do func(set string, e []nft.Elem)) {
	var run []nft.Elem
	for i, e := range elems {
		run = append(run, t.elem(e))
		if i+1 == len(elems) || elems[i+1].Key.Set != e.Key.Set {
			do(setNames[e.Key.Set], run)
			run = run[:0]
		}
	}
}

func (t *Table) elem(e plan.Elem) nft.Elem {
	out := nft.Elem{Key: appendKey(make([]byte, 0, 40), e.Key)}
	if e.Value.To.IsValid() {
		out.Data = appendTo(make([]byte, 0, 20), e.Value.To)
	}
	if c := e.Value.Chain; c.Kind != plan.None {
		v := t.verdicts[c]
		if v == nil {
			v = &nft.Verdict{Code: nft.Goto, Chain: chainName(c)}
			t.verdicts[c] = v
		}
		out.Verdict = v
	}
	return out
}

// Remove deletes our table of one family, whoever made it. A table that is not there is no error.
// Errors: Denied while another process owns it.
func Remove(conn *nft.Conn, fam state.Family) error {
	l := newLayout(fam, Static{})
	if _, err := conn.Table(l.fam, TableName); err != nil {
		if fault.Is(err, fault.NotFound) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		return err
	}
	b := nft.NewBatch(l.fam, TableName)
	b.DelTable()
	if err := conn.Commit(b); !fault.Is(err, fault.NotFound) {
		return hint(err)
	}
	return nil
}
