// Package act carries out the plan on the kernel: it writes plan.Deltas as one nftables transaction and reads the tables
// back (look.go). It decides nothing. Every call may be repeated after a look.
package act

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/nft"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// TableName is our table's name in every family.
const TableName = "worknode-proxy"

// comment names the meaning of the table's sets and hooks; a table with another one is replaced as a whole. The rules are
// covered by hashes, chain by chain.
const comment = "worknode proxy, layout 2"

// Tables are our tables in the network namespace of conn. They belong to one goroutine.
type Tables struct {
	conn     *nft.Conn
	flags    uint32
	verdicts map[plan.Chain]*nft.Verdict
}

// Open prepares the tables; nothing in the kernel changes yet. With shared set, other programs may change them too.
func Open(conn *nft.Conn, shared bool) *Tables {
	t := &Tables{conn: conn, verdicts: map[plan.Chain]*nft.Verdict{plan.Drop: {Code: nft.Drop}}}
	if !shared && conn.OwnedTables(nft.IPv4) {
		t.flags = nft.FlagOwner | nft.FlagPersist
	}
	return t
}

// Owned tells whether the kernel keeps others from changing the tables. If not, Watch tells when they do.
func (t *Tables) Owned() bool { return t.flags != 0 }

// Watch calls changed when somebody else changes the tables, until ctx ends.
func (t *Tables) Watch(ctx context.Context, changed func()) error {
	return nft.Watch(ctx, TableName, t.conn.Port(), changed)
}

// Serves tells whether the kernel has nftables for a family; one that was booted without IPv6 has not.
func (t *Tables) Serves(fam state.Family) bool {
	l := newLayout(fam)
	_, err := t.conn.Table(l.fam, TableName)
	return err == nil || fault.Is(err, fault.NotFound)
}

// Change is what happens to one family's table.
type Change struct {
	Family state.Family
	Delta  *plan.Delta
	Make   bool // the table anew: Delta stems from plan.Full on nothing
	Exists bool // Make: there is one, which goes in the same transaction
}

// Apply makes one transaction of all changes: both families change at once, or nothing does. Connections never meet a
// moment without rules.
// Errors: as nft.Conn.Commit; nothing has changed then. Crash: all of it happened or nothing; Look tells.
func (t *Tables) Apply(changes ...Change) (bytes int, err error) {
	b := t.Batch(changes...)
	err = t.conn.Commit(b)
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unsupported) || errors.Is(err, unix.EINVAL) {
		for _, c := range changes {
			if missing := t.conn.Missing(newLayout(c.Family).fam); c.Make && missing != nil {
				return b.Bytes(), missing
			}
		}
	}
	return b.Bytes(), hint(err)
}

// Try asks the kernel whether it would take the changes; nothing changes.
func (t *Tables) Try(changes ...Change) error { return t.conn.Check(t.Batch(changes...)) }

// Supersede removes kube-proxy's table of one family; see Remove.
func (t *Tables) Supersede(fam state.Family) (removed bool, err error) {
	return Remove(t.conn, fam, "kube-proxy")
}

// Batch writes changes as one transaction.
func (t *Tables) Batch(changes ...Change) *nft.Batch {
	b := nft.NewBatch(nft.IPv4, TableName)
	for _, c := range changes {
		l := newLayout(c.Family)
		b.On(l.fam, TableName)
		if c.Make {
			if c.Exists {
				b.DelTable()
			}
			b.AddTable(t.flags, comment)
			for _, s := range l.sets() {
				b.AddSet(s)
			}
		}
		t.write(b, l, c.Delta)
	}
	return b
}

// hint tells what to do when the kernel keeps us out.
func hint(err error) error {
	if fault.Is(err, fault.Denied) {
		return fault.Hint(err, "either CAP_NET_ADMIN is missing, or another worknode proxy runs in this network namespace")
	}
	return err
}

// write encodes a delta, in the order that plan.Delta promises. Chains are all made before the first has rules, as they
// lead to each other.
func (t *Tables) write(b *nft.Batch, l *layout, d *plan.Delta) {
	for _, name := range d.Maps {
		b.AddSet(l.clients(name))
	}
	for i := range d.Chains {
		if w := &d.Chains[i]; !w.Exists {
			if h, is := hooks[w.Hook]; is {
				b.AddChain(string(w.Name), &h)
			} else {
				b.AddChain(string(w.Name), nil)
			}
		}
	}
	for i := range d.Chains {
		w := &d.Chains[i]
		if w.Exists {
			b.FlushChain(string(w.Name))
		}
		l.chain(b, &w.ChainRules)
	}
	// Ranges may not overlap, not even for the length of a transaction.
	ranges := func(e plan.Elem) bool { return e.Key.Set == plan.Allowed }
	t.bySet(d.Del, ranges, b.DelElems)
	t.bySet(d.Add, nil, b.AddElems)
	t.bySet(d.Replace, nil, func(set string, e []nft.Elem) {
		b.DelElems(set, e)
		b.AddElems(set, e)
	})
	t.bySet(d.Del, func(e plan.Elem) bool { return !ranges(e) }, b.DelElems)
	for _, c := range d.DropChains {
		b.DelChain(string(c))
	}
	for _, name := range d.DropMaps {
		b.DelSet(name)
	}
}

// bySet calls do with runs of those elements of one set that only picks, all if it is nil.
func (t *Tables) bySet(elems []plan.Elem, only func(plan.Elem) bool, do func(set string, e []nft.Elem)) {
	const most = 1024
	var arena []byte // of keys and values of the run, which do copies
	var run []nft.Elem
	for i, e := range elems {
		if only == nil || only(e) {
			if cap(arena)-len(arena) < mostElem {
				arena = make([]byte, 0, mostElem*min(most, len(elems)-i))
			}
			var x nft.Elem
			x, arena = t.elem(e, arena)
			run = append(run, x)
		}
		if len(run) > 0 && (len(run) == most || i+1 == len(elems) || elems[i+1].Key.Set != e.Key.Set) {
			do(e.Key.Set.String(), run)
			run, arena = run[:0], arena[:0]
		}
	}
}

// elem encodes an element into arena, which has room for mostElem bytes.
func (t *Tables) elem(e plan.Elem, arena []byte) (nft.Elem, []byte) {
	var out nft.Elem
	take := func(b []byte) []byte {
		n := len(arena)
		arena = b
		return b[n:len(b):len(b)]
	}
	out.Key = take(appendKey(arena, e.Key))
	if e.Key.Set == plan.Allowed {
		out.KeyEnd = take(appendKeyEnd(arena, e.Key))
	}
	if e.Value.To.IsValid() {
		out.Data = take(appendTo(arena, e.Value.To))
	}
	if c := e.Value.Chain; c != "" {
		v := t.verdicts[c]
		if v == nil {
			v = &nft.Verdict{Code: nft.Goto, Chain: string(c)}
			if !plan.IsSticky(string(c)) { // a few dozen; those of Services come and go
				t.verdicts[c] = v
			}
		}
		out.Verdict = v
	}
	return out, arena
}

// Sweep removes the clients whose endpoint is gone from maps of affinity, after the transaction that took the endpoint.
// Errors: of the first map that failed. Repeat: safe.
func (t *Tables) Sweep(fam state.Family, sweeps []plan.Sweep) error {
	l := newLayout(fam)
	var first error
	for _, s := range sweeps {
		// A dump misses elements while the kernel resizes the map: look again until nothing is left to forget.
		for range sweepsMost {
			n, err := t.sweep(l, s)
			if err != nil && first == nil && !fault.Is(err, fault.NotFound) {
				first = err
			}
			if n == 0 || err != nil {
				break
			}
		}
	}
	return first
}

const sweepsMost = 10

// sweep removes what one look finds, and says how much that was.
func (t *Tables) sweep(l *layout, s plan.Sweep) (int, error) {
	live := make(map[string]bool, len(s.Live))
	for _, to := range s.Live {
		live[string(appendTo(nil, to))] = true
	}
	var gone []nft.Elem
	err := t.conn.Glance(l.fam, TableName, s.Map, func() { gone = gone[:0] }, func(e nft.Elem) {
		if !live[string(e.Data)] {
			gone = append(gone, nft.Elem{Key: append([]byte(nil), e.Key...)})
		}
	})
	if err != nil || len(gone) == 0 {
		return 0, err
	}
	b := nft.NewBatch(l.fam, TableName)
	b.DropElems(s.Map, gone)
	if err = t.conn.Commit(b); !errors.Is(err, unix.EINVAL) && !fault.Is(err, fault.Unsupported) {
		return len(gone), err
	}
	for _, e := range gone { // before kernel 6.3; clients may leave by themselves meanwhile
		b := nft.NewBatch(l.fam, TableName)
		b.DelElems(s.Map, []nft.Elem{e})
		if err := t.conn.Commit(b); err != nil && !fault.Is(err, fault.NotFound) {
			return len(gone), fmt.Errorf("forget the clients of %s: %w", s.Map, err)
		}
	}
	return len(gone), nil
}

// Remove deletes a table of that name in one family, whoever made it. A table that is not there is no error.
// Errors: Denied while another process owns it.
func Remove(conn *nft.Conn, fam state.Family, name string) (removed bool, err error) {
	l := newLayout(fam)
	if _, err := conn.Table(l.fam, name); err != nil {
		if fault.Is(err, fault.NotFound) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			return false, nil
		}
		return false, err
	}
	b := nft.NewBatch(l.fam, name)
	b.DelTable()
	if err := conn.Commit(b); !fault.Is(err, fault.NotFound) {
		return err == nil, hint(err)
	}
	return false, nil
}
