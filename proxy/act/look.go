package act

import (
	"fmt"
	"slices"

	"worknode/fault"
	"worknode/kernel/nft"
	"worknode/proxy/plan"
)

// Seen is what a look at the kernel found.
type Seen struct {
	Exists bool // there is a table of our name
	Usable bool // it has our layout and our rules, and is ours now; else Replace it
	Why    string
	Elems  map[plan.Key]plan.Value
	Chains map[plan.Chain]bool
}

// Look reads the table, and claims it if its last owner is gone. Elements that we could not have written make it
// unusable rather than being guessed at. Errors: Denied if another living process owns the table.
func (t *Table) Look() (Seen, error) {
	seen := Seen{Elems: map[plan.Key]plan.Value{}, Chains: map[plan.Chain]bool{}}
	tab, err := t.conn.Table(t.layout.fam, TableName)
	switch {
	case fault.Is(err, fault.NotFound):
		seen.Why = "no table"
		return seen, nil
	case fault.Is(err, fault.Unsupported):
		return seen, fault.Hint(err, "this kernel lacks CONFIG_NF_TABLES; load nf_tables, or use a kernel built with it")
	case err != nil:
		return seen, err
	}
	seen.Exists = true
	if tab.Comment != t.comment {
		seen.Why = fmt.Sprintf("its comment is %q, ours is %q", tab.Comment, t.comment)
		return seen, nil
	}
	// The kernel takes the owner flag off when the owner dies; the other one tells that it can be claimed.
	if (tab.Flags^t.flags)&nft.FlagPersist != 0 {
		seen.Why = "it is not a persistent table"
		return seen, nil
	}
	if t.flags != 0 && tab.Owner != t.conn.Port() {
		b := nft.NewBatch(t.layout.fam, TableName)
		b.AddTable(t.flags, "")
		if err := t.conn.Commit(b); err != nil {
			return seen, hint(err)
		}
	}
	if seen.Why, err = t.read(&seen); err != nil {
		return seen, err
	}
	seen.Usable = seen.Why == ""
	return seen, nil
}

// read fills in elements and chains; why tells what is not ours.
func (t *Table) read(seen *Seen) (why string, err error) {
	fam := t.layout.fam
	sets, err := t.conn.Sets(fam, TableName)
	if err != nil {
		return "", err
	}
	if len(sets) != int(plan.Sets) {
		return fmt.Sprintf("it has %d sets, ours %d", len(sets), plan.Sets), nil
	}
	chains, err := t.conn.Chains(fam, TableName)
	if err != nil {
		return "", err
	}
	for _, c := range t.layout.chains() {
		if n, ok := chains[c.name]; !ok || n != len(c.rules) {
			return fmt.Sprintf("chain %s has %d rules, ours %d", c.name, n, len(c.rules)), nil
		}
		delete(chains, c.name)
	}
	for name, n := range chains {
		c := chainOf(name)
		if !c.Kind.Sized() || n != 1 {
			return fmt.Sprintf("chain %s with %d rules is not ours", name, n), nil
		}
		seen.Chains[c] = true
	}
	for s := plan.Set(0); s < plan.Sets; s++ {
		if !slices.Contains(sets, setNames[s]) {
			return "set " + setNames[s] + " is missing", nil
		}
		var found []plan.Elem
		reset := func() { found, why = found[:0], "" } // a repeated dump starts again
		err := t.conn.Elems(fam, TableName, setNames[s], reset, func(e nft.Elem) {
			k, v, ok := t.layout.readElem(s, e)
			if !ok {
				why = fmt.Sprintf("set %s has the element %x, which is not ours", setNames[s], e.Key)
				return
			}
			found = append(found, plan.Elem{Key: k, Value: v})
		})
		if err != nil || why != "" {
			return why, err
		}
		for _, e := range found {
			seen.Elems[e.Key] = e.Value
		}
	}
	return "", nil
}
