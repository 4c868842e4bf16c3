package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/standalone/store"
	"worknode/strict"
)

// document is one object as a file declares it.
type document struct {
	source   string // "web.yaml#2": file below DIR and number of the document in it
	at       place
	text     string // its bytes, to see whether they changed
	config   map[string]any
	resource *store.Resource
	ns, name string
}

// place is where a document stands, for people.
type place struct {
	file string
	n    int // document in the file, from 1
	line int // line in the file where it begins, from 1
}

// Problem is what is wrong with one document.
type Problem struct {
	File     string
	Document int // from 1; 0: the file as a whole
	Line     int // in the file, from 1; 0 if no line can be blamed
	Err      error
}

func (p Problem) Error() string {
	text := p.File
	if p.Document > 0 {
		text += ": document " + strconv.Itoa(p.Document)
	}
	if p.Line > 0 {
		text += ", line " + strconv.Itoa(p.Line)
	}
	return text + ": " + p.Err.Error()
}

func (p Problem) Unwrap() error { return p.Err }

// mostBytes bounds one file: a node's manifests are written by people.
const mostBytes = 4 << 20

// readDir reads every manifest below dir: *.yaml, *.yml and *.json at its top and in its folder "manifests".
func readDir(dir string) (docs []document, problems []Problem) {
	var files []string
	for _, d := range folders(dir) {
		entries, err := os.ReadDir(d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			problems = append(problems, Problem{File: d, Err: err})
		}
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); slices.Contains([]string{".yaml", ".yml", ".json"}, ext) && !strings.HasPrefix(e.Name(), ".") {
				files = append(files, filepath.Join(d, e.Name()))
			}
		}
	}
	slices.Sort(files)
	for _, file := range files {
		name, err := filepath.Rel(dir, file)
		if err != nil {
			name = file
		}
		d, p := readFile(file, name)
		docs = append(docs, d...)
		problems = append(problems, p...)
	}
	return docs, problems
}

func folders(dir string) []string { return []string{dir, filepath.Join(dir, "manifests")} }

func readFile(file, name string) (docs []document, problems []Problem) {
	if st, err := os.Stat(file); err == nil && !st.Mode().IsRegular() {
		return nil, nil // a folder or a socket that ends in .yaml
	} else if err == nil && st.Size() > mostBytes {
		return nil, []Problem{{File: name, Err: fmt.Errorf("it has %d bytes, a manifest may have %d (split it)", st.Size(), mostBytes)}}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, []Problem{{File: name, Err: err}}
	}
	for i, part := range split(data) {
		at := place{name, i + 1, part.line}
		d, p := parse(part.text, at)
		docs = append(docs, d...)
		problems = append(problems, p...)
	}
	return docs, problems
}

type part struct {
	text []byte
	line int
}

// split cuts a file at lines that begin with "---"; parts without content do not count.
func split(data []byte) (parts []part) {
	line, start := 1, 1
	var text []byte
	flush := func() {
		if hasContent(text) {
			parts = append(parts, part{text, start})
		}
	}
	for l := range bytes.Lines(data) {
		if bytes.HasPrefix(l, []byte("---")) {
			flush()
			text, start = nil, line+1
		} else {
			text = append(text, l...)
		}
		line++
	}
	flush()
	return parts
}

func hasContent(text []byte) bool {
	for l := range bytes.Lines(text) {
		if l = bytes.TrimSpace(l); len(l) > 0 && l[0] != '#' {
			return true
		}
	}
	return false
}

// parse checks one document strictly against its kind; a List gives its items.
func parse(text []byte, at place) ([]document, []Problem) {
	problem := func(line int, err error) []Problem { return []Problem{{at.file, at.n, line, err}} }
	config, err := strict.Parse(text)
	if err != nil {
		line := at.line
		if e := new(strict.Error); errors.As(err, &e) && e.Line > 0 {
			line = at.line + e.Line - 1
		}
		return nil, problem(line, err)
	}
	lines := strict.LinesOf(text)
	if config["kind"] == "List" {
		return items(config, at, lines)
	}
	d, line, err := check(config, at, lines)
	if err != nil {
		return nil, problem(line, err)
	}
	d.source, d.text = at.file+"#"+strconv.Itoa(at.n), string(text)
	return []document{d}, nil
}

// items takes the objects out of a List; a bad one does not spoil the others.
func items(config map[string]any, at place, lines strict.Lines) (docs []document, problems []Problem) {
	list, _ := config["items"].([]any)
	for i, item := range list {
		one, ok := item.(map[string]any)
		if !ok {
			problems = append(problems, Problem{at.file, at.n, at.line, fmt.Errorf("items[%d] is not an object", i)})
			continue
		}
		d, line, err := check(one, at, lines.Below("items", i))
		if err != nil {
			problems = append(problems, Problem{at.file, at.n, line, fmt.Errorf("items[%d]: %w", i, err)})
			continue
		}
		raw, _ := json.Marshal(one) // it came out of JSON a moment ago
		d.source, d.text = fmt.Sprintf("%s#%d.%d", at.file, at.n, i+1), string(raw)
		docs = append(docs, d)
	}
	return docs, problems
}

// check decodes a configuration strictly into its type. On an error it tells the line in the file.
func check(config map[string]any, at place, lines strict.Lines) (document, int, error) {
	blame := func(path string) int {
		if l := lines.Find(path); l > 0 {
			return at.line + l - 1
		}
		return at.line
	}
	apiVersion, _ := config["apiVersion"].(string)
	kind, _ := config["kind"].(string)
	if apiVersion == "" || kind == "" {
		return document{}, at.line, errors.New("apiVersion and kind are missing: a Kubernetes object has both")
	}
	r := store.LookupKind(apiVersion, kind)
	if r == nil {
		return document{}, blame("kind"), fmt.Errorf("this node knows no kind %s of %s (it knows %s)", kind, apiVersion, kinds())
	}
	obj := r.New()
	if err := strict.Into(config, obj); err != nil {
		line := at.line
		if e := new(strict.Error); errors.As(err, &e) {
			line = blame(e.Field)
		}
		return document{}, line, fmt.Errorf("%s: %w", kind, err)
	}
	if obj.GetName() == "" {
		return document{}, blame("metadata"), fmt.Errorf("%s: metadata.name is missing", kind)
	}
	d := document{at: at, config: config, resource: r, name: obj.GetName()}
	if r.Namespaced {
		if d.ns = obj.GetNamespace(); d.ns == "" {
			d.ns = metav1.NamespaceDefault
		}
	}
	return d, 0, nil
}

func kinds() string {
	var names []string
	for _, r := range store.All {
		names = append(names, r.Kind)
	}
	return strings.Join(names, ", ")
}
