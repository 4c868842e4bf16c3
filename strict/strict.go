// Package strict reads what people write: one YAML or JSON document into a typed object, where an unknown field, a field
// given twice, a wrong case or a wrong type is an error that names the field and its line. It knows no kinds and reads no
// files.
package strict

import (
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"sync"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Error is what is wrong with a document.
type Error struct {
	Line  int    // in the document, from 1; 0 if no line can be blamed
	Field string // path of the field to blame, such as spec.containers[0].image; may be empty
	Err   error
}

// Error says what is wrong, with the field where the cause does not name it itself.
func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Decode reads a document into obj, a pointer. Errors are *Error, with the line where it can be told.
func Decode(text []byte, obj any) error {
	tree, err := Parse(text)
	if err != nil {
		return err
	}
	err = Into(tree, obj)
	if e := new(Error); errors.As(err, &e) {
		e.Line = LinesOf(text).Find(e.Field)
	}
	return err
}

// Parse turns a document into its tree of fields. Numbers are int64 or float64. Errors are *Error.
func Parse(text []byte) (map[string]any, error) {
	raw, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		line, said := 0, err.Error()
		if m := yamlLine().FindStringSubmatch(said); m != nil {
			if n, err := strconv.Atoi(m[1]); err == nil {
				line, said = n, strings.Replace(said, m[0]+": ", "", 1)
			}
		}
		return nil, &Error{Line: line, Err: errors.New(yamlWords.Replace(said))}
	}
	var tree map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &tree); err != nil || tree == nil {
		return nil, &Error{Err: errors.New("this is not an object with fields")}
	}
	return tree, nil
}

// Into decodes a tree into obj, a pointer. Errors are *Error, without a line: the tree has none.
func Into(tree map[string]any, obj any) error {
	raw, err := json.Marshal(tree)
	if err != nil {
		return &Error{Err: err}
	}
	complaints, err := kjson.UnmarshalStrict(raw, obj)
	if err != nil {
		field := ""
		if m := typeError().FindStringSubmatch(err.Error()); m != nil {
			field = m[1]
		}
		return &Error{Field: field, Err: errors.New(strings.TrimSpace(field + ": " + plain(err)))}
	}
	if len(complaints) > 0 {
		var texts []string
		for _, c := range complaints {
			texts = append(texts, c.Error())
		}
		return &Error{Field: quoted(texts[0]), Err: errors.New(strings.Join(texts, ", "))}
	}
	return nil
}

// The expressions are compiled at the first error: most processes never see one.
var (
	yamlLine  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`line (\d+)`) })
	typeError = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`into Go (?:struct field|value) \S*?\.(\S+) of type`)
	})
	goWords = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`cannot unmarshal (\S+) into Go struct field \S+ of type (\S+)`)
	})
	inQuotes = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`"([^"]*)"`) })
)

// yamlWords takes away what the YAML package says of itself.
var yamlWords = strings.NewReplacer("error converting YAML to JSON: ", "", "yaml: ", "", "unmarshal errors:\n  ", "")

// plain says a type error without Go's words.
func plain(err error) string {
	return goWords().ReplaceAllString(strings.TrimPrefix(err.Error(), "json: "), "it is a $1, want $2")
}

func quoted(text string) string {
	if m := inQuotes().FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}
