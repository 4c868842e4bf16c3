package strict

import (
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
)

// Lines finds the line of a field in a YAML text; the zero value knows nothing.
type Lines struct{ node *yamlv3.Node }

// LinesOf reads the text once more for its lines; of a text that cannot be parsed they are unknown.
func LinesOf(text []byte) Lines {
	var doc yamlv3.Node
	if yamlv3.Unmarshal(text, &doc) != nil || len(doc.Content) == 0 {
		return Lines{}
	}
	return Lines{doc.Content[0]}
}

// Below descends to element i of the list in a field.
func (l Lines) Below(field string, i int) Lines {
	if _, list := lookup(l.node, field); list != nil && list.Kind == yamlv3.SequenceNode && i < len(list.Content) {
		return Lines{list.Content[i]}
	}
	return Lines{}
}

// Find returns the line, from 1, of a path such as spec.containers[0].ports.containerPort; lists without an index
// are searched. Zero: it is not there.
func (l Lines) Find(path string) int {
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
