package ssa

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/yaml"

	"worknode/standalone/store"
)

// TestSchemasFitTheirTypes: reflection describes every kind so that an object of it is valid by its own schema.
func TestSchemasFitTheirTypes(t *testing.T) {
	for _, r := range store.All {
		obj := r.New()
		if _, err := typeOf(reflect.TypeOf(obj).Elem()).FromStructured(obj, typed.AllowDuplicates); err != nil {
			t.Errorf("%s: %v", r.Kind, err)
		}
	}
}

func doc(t *testing.T, text string) map[string]any {
	t.Helper()
	var out map[string]any
	if err := yaml.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestTwoManagersShareAPod walks through what one object goes through; each step starts from the last one's result.
func TestTwoManagersShareAPod(t *testing.T) {
	kind, now := reflect.TypeFor[corev1.Pod](), time.Unix(1e9, 0)
	live, owners := map[string]any{}, []metav1.ManagedFieldsEntry(nil)
	step := func(manager, config string, force bool, want string) {
		t.Helper()
		out, all, err := Apply(kind, live, doc(t, config), owners, "v1", manager, force, now)
		if want == "conflict" {
			var c Conflicts
			if !errors.As(err, &c) {
				t.Fatalf("%s applies %s: %v", manager, config, err)
			}
			return
		}
		if err != nil {
			t.Fatalf("%s applies %s: %v", manager, config, err)
		}
		got, _ := json.Marshal(out["spec"])
		expected, _ := json.Marshal(doc(t, want))
		if string(got) != string(expected) {
			t.Fatalf("%s applies %s\n got %s\nwant %s", manager, config, got, expected)
		}
		live, owners = out, all
	}
	step("a", `{spec: {containers: [{name: c, image: i1, ports: [{containerPort: 80}]}], nodeSelector: {k: v}}}`, false,
		`{containers: [{name: c, image: i1, ports: [{containerPort: 80}]}], nodeSelector: {k: v}}`)
	step("b", `{spec: {containers: [{name: c, env: [{name: E, value: "1"}], ports: [{containerPort: 80, protocol: UDP}]}]}}`, false,
		`{containers: [{name: c, image: i1, env: [{name: E, value: "1"}], ports: [{containerPort: 80}, {containerPort: 80, protocol: UDP}]}], nodeSelector: {k: v}}`)
	step("b", `{spec: {containers: [{name: c, image: i2}]}}`, false, "conflict")
	step("b", `{spec: {nodeSelector: {other: v}}}`, false, "conflict") // the map is one value
	step("b", `{spec: {containers: [{name: c, image: i2}]}}`, true,
		`{containers: [{name: c, image: i2, ports: [{containerPort: 80}]}], nodeSelector: {k: v}}`)
	step("a", `{spec: {containers: [{name: c}]}}`, false, `{containers: [{name: c, image: i2}]}`)
}

func TestWhatAUserEditsIsTheirs(t *testing.T) {
	kind, now := reflect.TypeFor[corev1.ConfigMap](), time.Unix(1e9, 0)
	_, owners, err := Apply(kind, map[string]any{}, doc(t, `{data: {a: "1", b: "1"}}`), nil, "v1", "file", false, now)
	if err != nil {
		t.Fatal(err)
	}
	old := &corev1.ConfigMap{Data: map[string]string{"a": "1", "b": "1"}}
	edited := &corev1.ConfigMap{Data: map[string]string{"a": "2", "b": "1"}}
	if owners, err = Update(old, edited, owners, "v1", "user", now); err != nil {
		t.Fatal(err)
	}
	// The file drops both: "b" goes, "a" is the user's by now.
	out, _, err := Apply(kind, doc(t, `{data: {a: "2", b: "1"}}`), doc(t, `{data: {}}`), owners, "v1", "file", false, now)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := json.Marshal(out["data"]); string(got) != `{"a":"2"}` {
		t.Errorf("left %s", got)
	}
}

func TestAFieldThatIsNotInTheType(t *testing.T) {
	_, _, err := Apply(reflect.TypeFor[corev1.Pod](), map[string]any{}, doc(t, `{spec: {wrong: 1}}`), nil, "v1", "m", false, time.Unix(1e9, 0))
	if err == nil || err.Error() != ".spec.wrong: field not declared in schema" {
		t.Errorf("got %v", err)
	}
}
