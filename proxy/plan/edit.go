package plan

import (
	"slices"
)

// edits gathers what happens to each key, so that an element which one port gives up and another takes is one change.
type edits struct {
	at   map[Key]int
	list []edit
}

type edit struct {
	key      Key
	old, new Value
	had, has bool
	count    int // shared sets: references won or lost
}

func (e *edits) of(k Key) *edit {
	if e.at == nil {
		e.at = map[Key]int{}
	}
	i, ok := e.at[k]
	if !ok {
		i = len(e.list)
		e.at[k] = i
		e.list = append(e.list, edit{key: k})
	}
	return &e.list[i]
}

func (e *edits) drop(p *Port) {
	p.elems(func(k Key, v Value) {
		if x := e.of(k); k.Set.shared() {
			x.count--
		} else {
			x.old, x.had = v, true
		}
	})
}

func (e *edits) want(p *Port) {
	p.elems(func(k Key, v Value) {
		if x := e.of(k); k.Set.shared() {
			x.count++
		} else {
			x.new, x.has = v, true
		}
	})
}

// fill sorts the edits into the transaction's phases and finds the sized chains it needs.
func (d *Delta) fill(list []edit, sized map[Chain]bool) {
	var need map[Chain]bool
	for i := range list {
		x := &list[i]
		switch {
		case x.had && !x.has:
			d.Del = append(d.Del, Elem{x.key, x.old})
			continue
		case !x.had && x.has:
			d.Add = append(d.Add, Elem{x.key, x.new})
		case x.had && x.has && x.old != x.new:
			d.Replace = append(d.Replace, Elem{x.key, x.new})
		default:
			continue
		}
		if c := x.new.Chain; c != "" && !sized[c] && !need[c] {
			if rules, ok := sizedRules(c); ok {
				if need == nil {
					need = map[Chain]bool{}
				}
				need[c] = true
				d.Chains = append(d.Chains, Write{rules, false})
			}
		}
	}
	rising := func(a, b Elem) int { return int(a.Key.Set) - int(b.Key.Set) }
	slices.SortStableFunc(d.Add, rising)
	slices.SortStableFunc(d.Replace, rising)
	slices.SortStableFunc(d.Del, func(a, b Elem) int { return rising(b, a) })
}
