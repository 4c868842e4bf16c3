package act

import (
	"fmt"

	"worknode/fault"
	"worknode/kernel/nft"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// Seen is what a look at the kernel found.
type Seen struct {
	Exists bool // there is a table of our name
	Usable bool // it has our layout, and is ours now; else make it anew
	Why    string
	plan.Have
}

// Look reads a table, and claims it if its last owner is gone. Chains and elements that we could not have written make it
// unusable rather than being guessed at; known are the chains of the ruleset.
// Errors: Denied if another living process owns the table.
func (t *Tables) Look(fam state.Family, known map[plan.Chain]bool) (Seen, error) {
	l := newLayout(fam)
	seen := Seen{Have: plan.Have{Elems: map[plan.Key]plan.Value{}, Chains: map[plan.Chain]uint64{}}}
	tab, err := t.conn.Table(l.fam, TableName)
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
	if tab.Comment != comment {
		seen.Why = fmt.Sprintf("its comment is %q, ours is %q", tab.Comment, comment)
		return seen, nil
	}
	// The kernel takes the owner flag off when the owner dies; the other one tells that it can be claimed.
	if (tab.Flags^t.flags)&nft.FlagPersist != 0 {
		seen.Why = "it is not a persistent table"
		if t.flags == 0 {
			seen.Why = "it is a persistent table"
		}
		return seen, nil
	}
	if t.flags != 0 && tab.Owner != t.conn.Port() {
		b := nft.NewBatch(l.fam, TableName)
		b.AddTable(t.flags, "")
		if err := t.conn.Commit(b); err != nil {
			return seen, hint(err)
		}
	}
	for _, read := range []func() (string, error){
		func() (string, error) { return t.readSets(l, &seen) },
		func() (string, error) { return t.readChains(l, &seen, known) },
		func() (string, error) { return t.readElems(l, &seen) },
	} {
		if seen.Why, err = read(); err != nil {
			if fault.Is(err, fault.NotFound) { // it went while we looked
				seen.Exists, seen.Why = false, "no table"
				return seen, nil
			}
			return seen, err
		}
		if seen.Why != "" {
			return seen, nil
		}
	}
	seen.Usable = true
	return seen, nil
}

func (t *Tables) readSets(l *layout, seen *Seen) (why string, err error) {
	sets, err := t.conn.Sets(l.fam, TableName)
	if err != nil {
		return "", err
	}
	there := map[string]bool{}
	for _, name := range sets {
		if there[name] = true; plan.IsSticky(name) {
			seen.Maps = append(seen.Maps, name)
		}
	}
	for s := plan.Set(0); s < plan.Sets; s++ {
		if !there[s.String()] {
			return "set " + s.String() + " is missing", nil
		}
	}
	return "", nil
}

// readChains compares each chain with the note on its first rule.
func (t *Tables) readChains(l *layout, seen *Seen, known map[plan.Chain]bool) (why string, err error) {
	chains, err := t.conn.Chains(l.fam, TableName)
	if err != nil {
		return "", err
	}
	notes := map[string]string{}
	err = t.conn.Rules(l.fam, TableName, func() { clear(notes) }, func(chain, note string) {
		if _, later := notes[chain]; !later {
			notes[chain] = note
		}
	})
	if err != nil {
		return "", err
	}
	for name, n := range chains {
		c := plan.Chain(name)
		if _, _, sized := c.Sized(); !known[c] && !sized && !plan.IsSticky(name) {
			return fmt.Sprintf("chain %s is not ours", name), nil
		}
		hash, rules := readNote(notes[name])
		switch {
		case n == 0:
			seen.Chains[c] = plan.EmptyHash()
		case rules == n:
			seen.Chains[c] = hash
		default:
			seen.Chains[c] = 0
		}
	}
	return "", nil
}

func (t *Tables) readElems(l *layout, seen *Seen) (why string, err error) {
	for s := plan.Set(0); s < plan.Sets; s++ {
		var found []plan.Elem
		reset := func() { found, why = found[:0], "" } // a repeated dump starts again
		err := t.conn.Elems(l.fam, TableName, s.String(), reset, func(e nft.Elem) {
			k, v, ok := l.readElem(s, e)
			if !ok {
				why = fmt.Sprintf("set %v has the element %x, which is not ours", s, e.Key)
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
