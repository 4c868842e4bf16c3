package merge

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// The words with which a strategic patch says more than values. Source: Kubernetes docs, "Strategic Merge Patch" in
// contributors/devel/sig-api-machinery.
const (
	directive      = "$patch"
	retainKeys     = "$retainKeys"
	deletePrefix   = "$deleteFromPrimitiveList/"
	orderPrefix    = "$setElementOrder/"
	directiveMerge = "merge"
	directiveSwap  = "replace"
	directiveDrop  = "delete"
)

// Strategic applies a strategic merge patch to an object whose Go type is t: how lists merge stands in the type's tags
// patchStrategy and patchMergeKey.
func Strategic(doc, patch map[string]any, t reflect.Type) (map[string]any, error) {
	return mergeMap(doc, patch, t)
}

func mergeMap(doc, patch map[string]any, t reflect.Type) (map[string]any, error) {
	if doc == nil {
		doc = map[string]any{}
	}
	switch word := patch[directive]; word {
	case nil, directiveMerge:
	case directiveSwap:
		delete(patch, directive)
		return patch, nil
	case directiveDrop:
		return map[string]any{}, nil
	default:
		return nil, fmt.Errorf("unknown %s directive %v", directive, word)
	}
	if err := retain(doc, patch); err != nil {
		return nil, err
	}
	for name, value := range patch {
		if list, is := strings.CutPrefix(name, deletePrefix); is {
			if _, also := patch[list]; !also {
				doc[list] = without(doc[list], value)
			}
			continue
		}
		if list, is := strings.CutPrefix(name, orderPrefix); is {
			if _, also := patch[list]; !also {
				if err := reorder(doc, list, value, t); err != nil {
					return nil, err
				}
			}
			continue
		}
		if name == directive || name == retainKeys {
			continue
		}
		if value == nil {
			delete(doc, name)
			continue
		}
		merged, err := mergeField(doc, patch, name, value, t)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		doc[name] = merged
	}
	return doc, nil
}

// retain drops the fields that the patch does not want to survive: it replaces one member of a union by another.
func retain(doc, patch map[string]any) error {
	raw, has := patch[retainKeys]
	if !has {
		return nil
	}
	list, is := raw.([]any)
	if !is {
		return fmt.Errorf("%s is not a list", retainKeys)
	}
	for name := range doc {
		if !slices.Contains(list, any(name)) {
			delete(doc, name)
		}
	}
	return nil
}

func mergeField(doc, patch map[string]any, name string, value any, t reflect.Type) (any, error) {
	f := fieldOf(t, name)
	switch v := value.(type) {
	case map[string]any:
		below, _ := doc[name].(map[string]any)
		if f.replaces() {
			return v, nil
		}
		return mergeMap(below, v, f.typ)
	case []any:
		below, _ := doc[name].([]any)
		if !f.merges() {
			return v, nil
		}
		below = withoutList(below, patch[deletePrefix+name])
		merged, err := mergeList(below, v, f)
		if err != nil {
			return nil, err
		}
		if order, has := patch[orderPrefix+name].([]any); has {
			return ordered(merged, below, order, f.key), nil
		}
		return merged, nil
	}
	return value, nil
}

func mergeList(doc, patch []any, f field) ([]any, error) {
	elem := elemOf(f.typ)
	out := slices.Clone(doc)
	for i, item := range patch {
		m, is := item.(map[string]any)
		if !is {
			if !slices.ContainsFunc(out, func(have any) bool { return same(have, item) }) {
				out = append(out, item)
			}
			continue
		}
		word := m[directive]
		if word == directiveSwap {
			return slices.Delete(slices.Clone(patch), i, i+1), nil
		}
		if f.key == "" {
			return nil, fmt.Errorf("list of %v has no merge key", elem)
		}
		key, has := m[f.key]
		if !has {
			return nil, fmt.Errorf("map: %v does not contain declared merge key: %s", m, f.key)
		}
		at := find(out, f.key, key)
		if word == directiveDrop {
			for ; at >= 0; at = find(out, f.key, key) {
				out = slices.Delete(out, at, at+1)
			}
			continue
		}
		var below map[string]any
		if at >= 0 {
			below, _ = out[at].(map[string]any)
		}
		merged, err := mergeMap(below, m, elem)
		if err != nil {
			return nil, err
		}
		if at >= 0 {
			out[at] = merged
		} else {
			out = append(out, merged)
		}
	}
	return out, nil
}

func find(list []any, key string, value any) int {
	return slices.IndexFunc(list, func(item any) bool {
		m, is := item.(map[string]any)
		return is && same(m[key], value)
	})
}

func without(list, drop any) any {
	l, _ := list.([]any)
	return withoutList(l, drop)
}

func withoutList(list []any, drop any) []any {
	d, _ := drop.([]any)
	if len(d) == 0 {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), func(have any) bool {
		return slices.ContainsFunc(d, func(x any) bool { return same(x, have) })
	})
}

func reorder(doc map[string]any, name string, value any, t reflect.Type) error {
	list, _ := doc[name].([]any)
	order, is := value.([]any)
	if !is {
		return fmt.Errorf("%s%s is not a list", orderPrefix, name)
	}
	if len(list) > 0 {
		doc[name] = ordered(list, list, order, fieldOf(t, name).key)
	}
	return nil
}

// ordered puts the items that order names into its order. Those that only the server has keep their place before the
// named item which followed them.
func ordered(list, before []any, order []any, key string) []any {
	id := func(item any) any {
		if m, is := item.(map[string]any); is && key != "" {
			return m[key]
		}
		return item
	}
	rank := func(item any) int {
		return slices.IndexFunc(order, func(o any) bool { return same(id(o), id(item)) })
	}
	was := func(item any) int {
		return slices.IndexFunc(before, func(o any) bool { return same(id(o), id(item)) })
	}
	var named, others []any
	for _, item := range list {
		if rank(item) >= 0 {
			named = append(named, item)
		} else {
			others = append(others, item)
		}
	}
	slices.SortStableFunc(named, func(a, b any) int { return rank(a) - rank(b) })
	out := make([]any, 0, len(list))
	for len(named) > 0 && len(others) > 0 {
		n, o := was(named[0]), was(others[0])
		if n >= 0 && o >= 0 && o < n {
			out, others = append(out, others[0]), others[1:]
		} else {
			out, named = append(out, named[0]), named[1:]
		}
	}
	return append(append(out, named...), others...)
}

// field is what a Go type says about one JSON field.
type field struct {
	typ        reflect.Type // nil: unknown, values replace
	strategies []string
	key        string
}

func (f field) merges() bool   { return slices.Contains(f.strategies, "merge") }
func (f field) replaces() bool { return slices.Contains(f.strategies, "replace") }

func fieldOf(t reflect.Type, name string) field {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil {
		return field{}
	}
	switch t.Kind() {
	case reflect.Map:
		return field{typ: t.Elem()}
	case reflect.Struct:
	default:
		return field{}
	}
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && tag == "" {
			if in := fieldOf(f.Type, name); in.typ != nil {
				return in
			}
			continue
		}
		if tag != name || !f.IsExported() {
			continue
		}
		out := field{typ: f.Type, key: f.Tag.Get("patchMergeKey")}
		if s := f.Tag.Get("patchStrategy"); s != "" {
			out.strategies = strings.Split(s, ",")
		}
		return out
	}
	return field{}
}

func elemOf(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Map) {
		return t.Elem()
	}
	return nil
}
