package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"worknode/standalone/store"
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

var yamlLine = regexp.MustCompile(`line (\d+)`)

// parse checks one document strictly against its kind; a List gives its items.
func parse(text []byte, at place) ([]document, []Problem) {
	problem := func(line int, err error) []Problem { return []Problem{{at.file, at.n, line, err}} }
	raw, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		line := at.line
		said := err.Error()
		if m := yamlLine.FindStringSubmatch(said); m != nil {
			if n, err := strconv.Atoi(m[1]); err == nil {
				line = at.line + n - 1
				said = strings.Replace(said, m[0]+": ", "", 1)
			}
		}
		return nil, problem(line, errors.New(strings.TrimPrefix(strings.TrimPrefix(said, "error converting YAML to JSON: "), "yaml: ")))
	}
	var config map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &config); err != nil {
		return nil, problem(at.line, errors.New("this is not an object with fields"))
	}
	lines := linesOf(text)
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
func items(config map[string]any, at place, lines locator) (docs []document, problems []Problem) {
	list, _ := config["items"].([]any)
	for i, item := range list {
		one, ok := item.(map[string]any)
		if !ok {
			problems = append(problems, Problem{at.file, at.n, at.line, fmt.Errorf("items[%d] is not an object", i)})
			continue
		}
		d, line, err := check(one, at, lines.below("items", i))
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
func check(config map[string]any, at place, lines locator) (document, int, error) {
	blame := func(path string) int {
		if l := lines.find(path); l > 0 {
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
	raw, err := json.Marshal(config)
	if err != nil {
		return document{}, at.line, err
	}
	obj := r.New()
	complaints, err := kjson.UnmarshalStrict(raw, obj)
	if err != nil {
		field := typeErrorField(err)
		return document{}, blame(field), fmt.Errorf("%s %s: %w", kind, field, plain(err))
	}
	if len(complaints) > 0 {
		var texts []string
		for _, c := range complaints {
			texts = append(texts, c.Error())
		}
		return document{}, blame(quoted(texts[0])), fmt.Errorf("%s: %s", kind, strings.Join(texts, ", "))
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

var (
	typeError = regexp.MustCompile(`into Go (?:struct field|value) \S*?\.(\S+) of type`)
	inQuotes  = regexp.MustCompile(`"([^"]*)"`)
)

// typeErrorField is the path that a JSON type error blames.
func typeErrorField(err error) string {
	if m := typeError.FindStringSubmatch(err.Error()); m != nil {
		return m[1]
	}
	return ""
}

// plain says a type error without Go's words.
func plain(err error) error {
	text := strings.TrimPrefix(err.Error(), "json: ")
	text = regexp.MustCompile(`cannot unmarshal (\S+) into Go struct field \S+ of type (\S+)`).ReplaceAllString(text, "it is a $1, want $2")
	return errors.New(text)
}

func quoted(text string) string {
	if m := inQuotes.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}

// locator finds the line of a field in a YAML text; the zero value knows nothing.
type locator struct{ node *yamlv3.Node }

func linesOf(text []byte) locator {
	var doc yamlv3.Node
	if yamlv3.Unmarshal(text, &doc) != nil || len(doc.Content) == 0 {
		return locator{}
	}
	return locator{doc.Content[0]}
}

// below descends to element i of the list in a field.
func (l locator) below(field string, i int) locator {
	if _, list := lookup(l.node, field); list != nil && list.Kind == yamlv3.SequenceNode && i < len(list.Content) {
		return locator{list.Content[i]}
	}
	return locator{}
}

// find returns the line of a path such as spec.containers[0].ports.containerPort; lists without an index are searched.
func (l locator) find(path string) int {
	if l.node == nil || path == "" {
		return 0
	}
	return walk(l.node, strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }))
}

func walk(n *yamlv3.Node, path []string) int {
	if n.Kind == yamlv3.SequenceNode {
		if i, err := strconv.Atoi(path[0]); err == nil {
			if i >= len(n.Content) {
				return 0
			}
			if len(path) == 1 {
				return n.Content[i].Line
			}
			return walk(n.Content[i], path[1:])
		}
		for _, e := range n.Content {
			if line := walk(e, path); line > 0 {
				return line
			}
		}
		return 0
	}
	key, value := lookup(n, path[0])
	if key == nil {
		return 0
	}
	if len(path) > 1 {
		return walk(value, path[1:])
	}
	return key.Line
}

func lookup(n *yamlv3.Node, field string) (key, value *yamlv3.Node) {
	if n == nil || n.Kind != yamlv3.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == field {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}
