package strict

import (
	"errors"
	"testing"
)

type pod struct {
	Kind string `json:"kind"`
	Spec struct {
		Containers []struct {
			Name  string `json:"name"`
			Ports []struct {
				ContainerPort int `json:"containerPort"`
			} `json:"ports"`
		} `json:"containers"`
	} `json:"spec"`
}

func TestMistakesAreBlamedOnFieldAndLine(t *testing.T) {
	for _, c := range []struct {
		name, text, field, says string
		line                    int
	}{
		{"unknown field", "kind: Pod\nspec:\n  containers:\n  - name: a\n    prots: []\n", "spec.containers[0].prots", `unknown field "spec.containers[0].prots"`, 5},
		{"wrong case", "kind: Pod\nSpec: {}\n", "Spec", `unknown field "Spec"`, 2},
		{"wrong type", "kind: Pod\nspec:\n  containers:\n  - name: a\n    ports:\n    - containerPort: http\n", "spec.containers.ports.containerPort",
			"spec.containers.ports.containerPort: it is a string, want int", 6},
		{"twice", "kind: Pod\nkind: Pod\n", "", `key "kind" already set in map`, 2},
		{"broken", "kind: [\n", "", "did not find expected node content", 1},
		{"a list", "- a\n", "", "this is not an object with fields", 0},
		{"empty", "", "", "this is not an object with fields", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Decode([]byte(c.text), new(pod))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if e.Field != c.field || e.Line != c.line || e.Error() != c.says {
				t.Errorf("field %q line %d: %s; want field %q line %d: %s", e.Field, e.Line, e, c.field, c.line, c.says)
			}
		})
	}
	if err := Decode([]byte("kind: Pod\nspec: {containers: [{name: a}]}\n"), new(pod)); err != nil {
		t.Error(err)
	}
}
