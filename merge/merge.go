// Package merge applies the three kinds of patches of the Kubernetes API to decoded JSON. It is pure: values in, values
// out. Arguments may be changed and become part of the result.
//
// apimachinery's strategicpatch does the same for strategic patches but costs every process of this binary three
// megabytes of memory (measured: it links the OpenAPI models); this does not.
package merge

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// Merge applies a JSON merge patch. Source: RFC 7386.
func Merge(doc, patch any) any {
	fields, is := patch.(map[string]any)
	if !is {
		return patch
	}
	out, is := doc.(map[string]any)
	if !is {
		out = map[string]any{}
	}
	for name, value := range fields {
		if value == nil {
			delete(out, name)
			continue
		}
		out[name] = Merge(out[name], value)
	}
	return out
}

// Operation is one step of a JSON patch. Source: RFC 6902.
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	From  string `json:"from"`
	Value any    `json:"value"`
}

// Patch applies the steps of a JSON patch in order. An error leaves doc in an undefined state.
func Patch(doc any, steps []Operation) (any, error) {
	for i, step := range steps {
		var err error
		if doc, err = apply(doc, step); err != nil {
			return nil, fmt.Errorf("operation %d (%s %s): %w", i, step.Op, step.Path, err)
		}
	}
	return doc, nil
}

func apply(doc any, step Operation) (any, error) {
	path, err := pointer(step.Path)
	if err != nil {
		return nil, err
	}
	switch step.Op {
	case "add":
		return edit(doc, path, add, clone(step.Value))
	case "remove":
		return edit(doc, path, remove, nil)
	case "replace":
		return edit(doc, path, replace, clone(step.Value))
	case "test":
		have, err := lookup(doc, path)
		if err != nil {
			return nil, err
		}
		if !same(have, step.Value) {
			return nil, fmt.Errorf("testing value %s failed", step.Path)
		}
		return doc, nil
	case "move", "copy":
		from, err := pointer(step.From)
		if err != nil {
			return nil, err
		}
		value, err := lookup(doc, from)
		if err != nil {
			return nil, err
		}
		value = clone(value)
		if step.Op == "move" {
			if doc, err = edit(doc, from, remove, nil); err != nil {
				return nil, err
			}
		}
		return edit(doc, path, add, value)
	}
	return nil, fmt.Errorf("unexpected kind: %q", step.Op)
}

// pointer splits a JSON pointer. Source: RFC 6901.
func pointer(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	if text[0] != '/' {
		return nil, fmt.Errorf("path %q does not begin with /", text)
	}
	parts := strings.Split(text[1:], "/")
	for i := range parts {
		parts[i] = strings.ReplaceAll(strings.ReplaceAll(parts[i], "~1", "/"), "~0", "~")
	}
	return parts, nil
}

func lookup(doc any, path []string) (any, error) {
	for _, part := range path {
		switch d := doc.(type) {
		case map[string]any:
			value, has := d[part]
			if !has {
				return nil, fmt.Errorf("missing key %q", part)
			}
			doc = value
		case []any:
			i, err := index(part, len(d)-1)
			if err != nil {
				return nil, err
			}
			doc = d[i]
		default:
			return nil, fmt.Errorf("nothing is below %q", part)
		}
	}
	return doc, nil
}

// index reads an array index that may be at most last.
func index(part string, last int) (int, error) {
	i, err := strconv.Atoi(part)
	if err != nil || i < 0 || i > last {
		return 0, fmt.Errorf("invalid array index %q", part)
	}
	return i, nil
}

type verb int

const (
	add verb = iota
	remove
	replace
)

// edit changes the place that path names and returns the changed document.
func edit(doc any, path []string, do verb, value any) (any, error) {
	if len(path) == 0 {
		return value, nil
	}
	part, last := path[0], len(path) == 1
	switch d := doc.(type) {
	case map[string]any:
		below, has := d[part]
		if !has && (!last || do != add) {
			return nil, fmt.Errorf("missing key %q", part)
		}
		if last && do == remove {
			delete(d, part)
			return d, nil
		}
		changed, err := edit(below, path[1:], do, value)
		d[part] = changed
		return d, err
	case []any:
		return editArray(d, path, do, value)
	}
	return nil, fmt.Errorf("nothing is below %q", part)
}

func editArray(d []any, path []string, do verb, value any) (any, error) {
	part, last := path[0], len(path) == 1
	if last && do == add {
		if part == "-" {
			return append(d, value), nil
		}
		i, err := index(part, len(d))
		if err != nil {
			return nil, err
		}
		return append(d[:i:i], append([]any{value}, d[i:]...)...), nil
	}
	i, err := index(part, len(d)-1)
	if err != nil {
		return nil, err
	}
	if last && do == remove {
		return append(d[:i:i], d[i+1:]...), nil
	}
	d[i], err = edit(d[i], path[1:], do, value)
	return d, err
}

// same compares decoded JSON; numbers by value, whatever type they were decoded to.
func same(a, b any) bool {
	if x, is := number(a); is {
		y, is := number(b)
		return is && x == y
	}
	switch x := a.(type) {
	case map[string]any:
		y, is := b.(map[string]any)
		if !is || len(x) != len(y) {
			return false
		}
		for k, v := range x {
			w, has := y[k]
			if !has || !same(v, w) {
				return false
			}
		}
		return true
	case []any:
		y, is := b.([]any)
		if !is || len(x) != len(y) {
			return false
		}
		for i := range x {
			if !same(x[i], y[i]) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a, b)
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case int64:
		return float64(n), true
	case float64:
		return n, true
	case int:
		return float64(n), true
	}
	return 0, false
}

func clone(v any) any {
	switch x := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(x))
		for k, e := range x {
			out[k] = clone(e)
		}
		return out
	case []any:
		out := make([]any, len(x))
		for i, e := range x {
			out[i] = clone(e)
		}
		return out
	}
	return v
}
