package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"worknode/fault"
	"worknode/strict"
)

// Problem is one thing that is wrong with a configuration, and where.
type Problem struct {
	Source string // the file, or "command line"
	Line   int    // zero: none
	Field  string // as in the file: conntrack.maxPerCore
	Says   string // what is wrong and what to write instead
}

func (p Problem) Error() string {
	at := p.Source
	if p.Line > 0 {
		at += ":" + strconv.Itoa(p.Line)
	}
	if p.Field != "" {
		at += ": " + p.Field
	}
	return at + ": " + p.Says
}

// fail turns problems into one error, a line each; nil if there are none.
func fail(all []Problem) error {
	errs := make([]error, len(all))
	for i, p := range all {
		errs[i] = p
	}
	return fault.As(fault.Invalid, errors.Join(errs...))
}

// decode reads YAML or JSON into l. Unknown and repeated fields are errors; lenient makes a notice of them, if that is
// all that is wrong, as kube-proxy 1.37 does.
func (l *Loaded) decode(data []byte, lenient bool) error {
	l.lines = strict.LinesOf(data)
	err := strict.Decode(data, &l.Configuration)
	if err != nil {
		p := Problem{Source: l.Source, Says: err.Error()}
		if e := new(strict.Error); errors.As(err, &e) {
			p.Line = e.Line
			if near := meant(e.Field); near != "" {
				p.Says += " (did you mean " + near + "?)"
			}
		}
		if !lenient || !l.lax(data) {
			return fail([]Problem{p})
		}
		l.Notices = append(l.Notices, "configuration read leniently: "+p.Error())
	}
	k := &checker{source: l.Source, line: l.lines.Find}
	if l.APIVersion != APIVersion {
		k.bad("apiVersion", "%q: must be %s", l.APIVersion, APIVersion)
	}
	if l.Kind != Kind {
		k.bad("kind", "%q: must be %s", l.Kind, Kind)
	}
	return fail(k.wrong)
}

// lax decodes once more, passing over what is not known; the last of repeated fields counts.
func (l *Loaded) lax(data []byte) bool {
	raw, err := yaml.YAMLToJSON(data)
	if err != nil {
		return false
	}
	l.Configuration = Configuration{}
	return kjson.UnmarshalCaseSensitivePreserveInts(raw, &l.Configuration) == nil
}

// meant is the field that a person most likely had in mind, empty if none is near.
func meant(path string) string {
	parent, name := "", path
	if i := strings.LastIndexByte(path, '.'); i >= 0 {
		parent, name = path[:i+1], path[i+1:]
	}
	t := reflect.TypeFor[Configuration]()
	if parent != "" {
		f, ok := fieldOf(reflect.New(t).Elem(), strings.TrimSuffix(parent, "."))
		if !ok || f.Kind() != reflect.Struct {
			return ""
		}
		t = f.Type()
	}
	best, most := "", 4
	for _, one := range fieldNames(t) {
		if n := distance(strings.ToLower(name), strings.ToLower(one)); n < min(most, len(name)) && one != name {
			best, most = parent+one, n
		}
	}
	return best
}

// distance is the number of letters to change, add or remove; texts too long to be names are far.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost++
			}
			last, row[j+1] = row[j+1], min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// fieldOf finds a field by its path of JSON names, letter for letter, also in embedded structs.
func fieldOf(v reflect.Value, path string) (reflect.Value, bool) {
	name, rest, more := strings.Cut(path, ".")
	if v.Kind() != reflect.Struct {
		return v, false
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		switch {
		case f.Anonymous:
			if got, ok := fieldOf(v.Field(i), path); ok {
				return got, true
			}
		case jsonName(f) == name && more:
			return fieldOf(v.Field(i), rest)
		case jsonName(f) == name:
			return v.Field(i), true
		}
	}
	return v, false
}

func fieldNames(t reflect.Type) (all []string) {
	for i := range t.NumField() {
		if f := t.Field(i); f.Anonymous {
			all = append(all, fieldNames(f.Type)...)
		} else {
			all = append(all, jsonName(f))
		}
	}
	slices.Sort(all)
	return all
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// at is a field of a configuration that must be there.
func (c *Configuration) at(path string) reflect.Value {
	f, ok := fieldOf(reflect.ValueOf(c).Elem(), path)
	if !ok {
		panic(fmt.Sprintf("config: no field %s", path))
	}
	return f
}
