package seccomp

import (
	"math"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
)

// rule answers act when all conditions hold; no conditions hold always.
type rule struct {
	conds []specs.LinuxSeccompArg
	act   uint32
}

// conditions splits a rule's arguments. Several conditions on one argument mean "any of them", as libseccomp's callers
// have it (profiles list the allowed values of one argument that way); on different arguments they mean "all of them".
func conditions(call *specs.LinuxSyscall) ([][]specs.LinuxSeccompArg, error) {
	seen := map[uint]bool{}
	repeated := false
	for _, a := range call.Args {
		if a.Index > 5 {
			return nil, fault.New(fault.Invalid, "seccomp profile: %v has no argument %d", call.Names, a.Index)
		}
		if _, _, _, known := holds(a.Op); !known {
			return nil, fault.New(fault.Invalid, "seccomp profile: operator %q is unknown", a.Op)
		}
		repeated = repeated || seen[a.Index]
		seen[a.Index] = true
	}
	if !repeated {
		return [][]specs.LinuxSeccompArg{call.Args}, nil
	}
	var out [][]specs.LinuxSeccompArg
	for _, a := range call.Args {
		out = append(out, []specs.LinuxSeccompArg{a})
	}
	return out, nil
}

// chain is the code of one call: its rules in order, then the fallback. A rule without conditions ends it.
func chain(rules []rule, fallback uint32) []ins {
	var out []ins
	for i, r := range rules {
		if set := allowedValues(rules[i:], fallback); set != nil {
			return append(out, set...)
		}
		if len(r.conds) == 0 {
			return append(out, ret(r.act)...)
		}
		if r.act == fallback && len(rules) == 1 {
			break
		}
		out = append(out, guarded(r)...)
	}
	return append(out, ret(fallback)...)
}

// allowedValues is the code for rules that all compare the same argument for equality and answer the same, such as the
// forty socket families of the default profile: a search among the values instead of a comparison for each.
// It returns nil for other rules.
func allowedValues(rules []rule, fallback uint32) []ins {
	if len(rules) < 4 {
		return nil
	}
	var values []uint32
	for _, r := range rules {
		if len(r.conds) != 1 || r.act != rules[0].act {
			return nil
		}
		c := r.conds[0]
		if c.Op != specs.OpEqualTo || c.Index != rules[0].conds[0].Index || c.Value > math.MaxUint32 {
			return nil
		}
		values = append(values, uint32(c.Value))
	}
	slices.Sort(values)
	var spans []span
	next := uint32(0)
	for _, v := range slices.Compact(values) {
		if v > next {
			spans = append(spans, span{next, ret(fallback)})
		}
		spans = append(spans, span{v, ret(rules[0].act)})
		next = v + 1
	}
	if next != 0 { // the last value was not the greatest there is
		spans = append(spans, span{next, ret(fallback)})
	}
	at := uint32(offArgs + 8*rules[0].conds[0].Index)
	out := []ins{{code: loadWord, k: at + 4}, {code: jumpEqual, jt: 1, k: 0}, ret(fallback)[0], {code: loadWord, k: at}}
	return append(out, tree(join(spans))...)
}

// guarded is one rule with conditions: it returns the action if all hold, else falls through to what follows.
func guarded(r rule) []ins {
	out := ret(r.act)
	for _, c := range slices.Backward(r.conds) {
		out = append(compare(c, uint8(len(out))), out...)
	}
	return out
}

// holds says how an operator is built: on which of "greater", "equal" and "less" of the 64-bit comparison it holds.
// A function and not a map, as a map is built at the start of every process that shares our binary.
func holds(op specs.LinuxSeccompOperator) (greater, equal, less, known bool) {
	switch op {
	case specs.OpNotEqual:
		return true, false, true, true
	case specs.OpLessThan:
		return false, false, true, true
	case specs.OpLessEqual:
		return false, true, true, true
	case specs.OpEqualTo, specs.OpMaskedEqual:
		return false, true, false, true
	case specs.OpGreaterEqual:
		return true, true, false, true
	case specs.OpGreaterThan:
		return true, false, false, true
	}
	return false, false, false, false
}

// compare checks one argument, unsigned and in 64 bits: high word first, low word if the high words are equal.
// If it holds, control goes on behind the code; if not, it skips further instructions by beyond.
func compare(c specs.LinuxSeccompArg, beyond uint8) []ins {
	at := uint32(offArgs + 8*c.Index)
	value, mask := c.Value, ^uint64(0)
	if c.Op == specs.OpMaskedEqual {
		value, mask = c.ValueTwo, c.Value // the profile's value is the mask, valueTwo what must remain
	}
	greater, equal, less, _ := holds(c.Op)
	low := []ins{{code: loadWord, k: at}}
	if uint32(mask) != ^uint32(0) {
		low = append(low, ins{code: andWith, k: uint32(mask)})
	}
	low = append(low, decide(uint32(value), greater, equal, less, beyond)...)
	high := []ins{{code: loadWord, k: at + 4}}
	if uint32(mask>>32) != ^uint32(0) {
		high = append(high, ins{code: andWith, k: uint32(mask >> 32)})
	}
	high = append(high, highWord(uint32(value>>32), greater, less, uint8(len(low)), beyond)...)
	return append(high, low...)
}

// highWord settles the comparison where the high words differ, and falls through to the low word where they are equal.
func highWord(k uint32, greater, less bool, low, beyond uint8) []ins {
	jump := func(yes bool) uint8 {
		if yes {
			return low
		}
		return low + beyond
	}
	if greater == less {
		return []ins{{code: jumpEqual, jt: 0, jf: jump(greater), k: k}}
	}
	return []ins{
		{code: jumpGT, jt: 1 + jump(greater), jf: 0, k: k},
		{code: jumpEqual, jt: 0, jf: jump(less), k: k},
	}
}

// decide settles the low word: falls through where the comparison holds, skips by beyond where not.
func decide(k uint32, greater, equal, less bool, beyond uint8) []ins {
	skip := func(yes bool) uint8 {
		if yes {
			return 0
		}
		return beyond
	}
	if greater == less {
		return []ins{{code: jumpEqual, jt: skip(equal), jf: skip(greater), k: k}}
	}
	if equal == greater { // >= : one comparison decides
		return []ins{{code: jumpGE, jt: skip(greater), jf: skip(less), k: k}}
	}
	return []ins{{code: jumpGT, jt: skip(greater), jf: skip(less), k: k}}
}
