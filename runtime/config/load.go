package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"worknode/fault"
)

// maxFile bounds one file, in bytes.
const maxFile = 1 << 20

// Load reads file and its drop-ins over the defaults. No name, no file: the defaults alone.
// Errors: Invalid with file, line and field; what the file system says if file cannot be read. Drop-ins may be absent.
func Load(file string) (Config, error) {
	c := Default()
	if file == "" {
		return c, nil
	}
	names, err := filepath.Glob(filepath.Join(globless(file+".d"), "*.toml"))
	if err != nil {
		return c, fmt.Errorf("configuration %s.d: %w", file, err)
	}
	slices.Sort(names)
	for _, name := range append([]string{file}, names...) {
		data, err := read(name)
		if err == nil {
			err = parse(&c, data)
		}
		if err == nil {
			err = c.Check()
		}
		if err != nil {
			return c, fault.As(fault.Invalid, fmt.Errorf("configuration %s: %w", name, err))
		}
	}
	return c, nil
}

// globless keeps a path's own stars from meaning anything.
func globless(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func read(name string) ([]byte, error) {
	st, err := os.Stat(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fault.Hint(err, "`worknode runtime config` prints one to begin with")
		}
		return nil, err
	}
	if st.Size() > maxFile {
		return nil, fmt.Errorf("%d bytes, at most %d are read", st.Size(), maxFile)
	}
	return os.ReadFile(name)
}

// parse reads one file over c.
func parse(c *Config, data []byte) error {
	// Into a fresh value first: a list in a later file replaces an earlier one and does not grow at its end.
	var plain map[string]any
	if err := toml.Unmarshal(data, &plain); err != nil {
		return explain(err)
	}
	clearLists(reflect.ValueOf(c).Elem(), plain)
	return explain(toml.NewDecoder(strings.NewReader(string(data))).DisallowUnknownFields().Decode(c))
}

// clearLists empties the lists that named is about to set.
func clearLists(v reflect.Value, named map[string]any) {
	for i := range v.NumField() {
		for name, value := range named {
			if !strings.EqualFold(name, key(v.Type().Field(i))) {
				continue
			}
			switch f := v.Field(i); f.Kind() {
			case reflect.Slice:
				f.SetZero()
			case reflect.Struct:
				if inner, ok := value.(map[string]any); ok {
					clearLists(f, inner)
				}
			}
		}
	}
}

// key is a field's name in the file.
func key(f reflect.StructField) string { return f.Tag.Get("toml") }

// explain puts line, column and field into words.
func explain(err error) error {
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown) && len(unknown.Errors) > 0:
		first := unknown.Errors[0]
		line, _ := first.Position()
		return fault.New(fault.Invalid, "line %d: field %s is unknown", line, strings.Join(first.Key(), "."))
	case errors.As(err, &wrong):
		line, column := wrong.Position()
		field := ""
		if k := wrong.Key(); len(k) > 0 {
			field = "field " + strings.Join(k, ".") + ": "
		}
		return fault.New(fault.Invalid, "line %d, column %d: %s%s", line, column, field, strings.TrimPrefix(wrong.Error(), "toml: "))
	}
	return err
}

// Text is the whole configuration as a file would say it.
func (c Config) Text() ([]byte, error) {
	var b strings.Builder
	e := toml.NewEncoder(&b)
	if err := e.Encode(c); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return []byte(b.String()), nil
}

// Changed names the fields in which want differs from have: live ones, which can follow, and others, for which the
// process must be started anew.
func Changed(have, want Config) (live, restart []string) {
	compare("", reflect.ValueOf(have), reflect.ValueOf(want), func(name string, follows bool) {
		if follows {
			live = append(live, name)
		} else {
			restart = append(restart, name)
		}
	})
	return live, restart
}

func compare(at string, have, want reflect.Value, report func(string, bool)) {
	for i := range have.NumField() {
		f := have.Type().Field(i)
		name := strings.TrimPrefix(at+"."+key(f), ".")
		a, b := have.Field(i), want.Field(i)
		switch {
		case f.Type.Kind() == reflect.Struct:
			compare(name, a, b, report)
		case !reflect.DeepEqual(a.Interface(), b.Interface()):
			report(name, f.Tag.Get("live") != "")
		}
	}
}
