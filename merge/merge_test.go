package merge

import (
	"encoding/json"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"
)

func decode(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := kjson.UnmarshalCaseSensitivePreserveInts([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

func check(t *testing.T, name string, got any, err error, want string) {
	t.Helper()
	if want == "error" {
		if err == nil {
			t.Errorf("%s: no error but %v", name, got)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if !reflect.DeepEqual(got, decode(t, want)) {
		text, _ := json.Marshal(got)
		t.Errorf("%s\n got %s\nwant %s", name, text, want)
	}
}

// The cases of RFC 7386, appendix A, that concern objects.
func TestMergePatch(t *testing.T) {
	for _, c := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	} {
		check(t, c[1], Merge(decode(t, c[0]), decode(t, c[1])), nil, c[2])
	}
}

// Cases of RFC 6902, appendix A.
func TestJSONPatch(t *testing.T) {
	for _, c := range [][3]string{
		{`{"foo":"bar"}`, `[{"op":"add","path":"/baz","value":"qux"}]`, `{"baz":"qux","foo":"bar"}`},
		{`{"foo":["bar","baz"]}`, `[{"op":"add","path":"/foo/1","value":"qux"}]`, `{"foo":["bar","qux","baz"]}`},
		{`{"baz":"qux","foo":"bar"}`, `[{"op":"remove","path":"/baz"}]`, `{"foo":"bar"}`},
		{`{"foo":["bar","qux","baz"]}`, `[{"op":"remove","path":"/foo/1"}]`, `{"foo":["bar","baz"]}`},
		{`{"baz":"qux"}`, `[{"op":"replace","path":"/baz","value":"boo"}]`, `{"baz":"boo"}`},
		{`{"foo":{"bar":"baz","waldo":"fred"},"qux":{"corge":"grault"}}`, `[{"op":"move","from":"/foo/waldo","path":"/qux/thud"}]`, `{"foo":{"bar":"baz"},"qux":{"corge":"grault","thud":"fred"}}`},
		{`{"foo":["all","grass","cows","eat"]}`, `[{"op":"move","from":"/foo/1","path":"/foo/3"}]`, `{"foo":["all","cows","eat","grass"]}`},
		{`{"a":[1,2]}`, `[{"op":"copy","from":"/a","path":"/b"},{"op":"add","path":"/b/-","value":3}]`, `{"a":[1,2],"b":[1,2,3]}`},
		{`{"baz":"qux","foo":["a",2,"c"]}`, `[{"op":"test","path":"/baz","value":"qux"},{"op":"test","path":"/foo/1","value":2.0}]`, `{"baz":"qux","foo":["a",2,"c"]}`},
		{`{"baz":"qux"}`, `[{"op":"test","path":"/baz","value":"bar"}]`, `error`},
		{`{"foo":"bar"}`, `[{"op":"add","path":"/baz/bat","value":"qux"}]`, `error`},
		{`{"/":9,"~1":10}`, `[{"op":"test","path":"/~01","value":10},{"op":"remove","path":"/~1"}]`, `{"~1":10}`},
		{`{"a":[1]}`, `[{"op":"remove","path":"/a/1"}]`, `error`},
		{`{"a":[1]}`, `[{"op":"add","path":"/a/2","value":1}]`, `error`},
		{`{"a":1}`, `[{"op":"remove","path":"/b"}]`, `error`},
		{`{"a":1}`, `[{"op":"shrink","path":"/a"}]`, `error`},
		{`{"a":1}`, `[{"op":"remove","path":"a"}]`, `error`},
	} {
		var steps []Operation
		if err := kjson.UnmarshalCaseSensitivePreserveInts([]byte(c[1]), &steps); err != nil {
			t.Fatal(err)
		}
		got, err := Patch(decode(t, c[0]), steps)
		check(t, c[1], got, err, c[2])
	}
}

func TestStrategic(t *testing.T) {
	for _, c := range []struct{ name, doc, patch, want string }{
		{"maps merge", `{"metadata":{"labels":{"a":"1"}}}`, `{"metadata":{"labels":{"b":"2"}}}`, `{"metadata":{"labels":{"a":"1","b":"2"}}}`},
		{"null removes", `{"metadata":{"labels":{"a":"1","b":"2"}}}`, `{"metadata":{"labels":{"a":null}}}`, `{"metadata":{"labels":{"b":"2"}}}`},
		{"containers merge by name", `{"spec":{"containers":[{"name":"a","image":"1"},{"name":"b","image":"1"}]}}`,
			`{"spec":{"containers":[{"name":"b","image":"2"}]}}`, `{"spec":{"containers":[{"name":"a","image":"1"},{"name":"b","image":"2"}]}}`},
		{"a new item is appended", `{"spec":{"containers":[{"name":"a"}]}}`, `{"spec":{"containers":[{"name":"c","image":"x"}]}}`, `{"spec":{"containers":[{"name":"a"},{"name":"c","image":"x"}]}}`},
		{"an item is deleted", `{"spec":{"containers":[{"name":"a"},{"name":"b"}]}}`, `{"spec":{"containers":[{"$patch":"delete","name":"a"}]}}`, `{"spec":{"containers":[{"name":"b"}]}}`},
		{"a list is replaced", `{"spec":{"containers":[{"name":"a"},{"name":"b"}]}}`, `{"spec":{"containers":[{"$patch":"replace"},{"name":"z"}]}}`, `{"spec":{"containers":[{"name":"z"}]}}`},
		{"a map is replaced", `{"metadata":{"labels":{"a":"1"}}}`, `{"metadata":{"labels":{"$patch":"replace","b":"2"}}}`, `{"metadata":{"labels":{"b":"2"}}}`},
		{"a map is emptied", `{"spec":{"securityContext":{"runAsUser":1}}}`, `{"spec":{"securityContext":{"$patch":"delete"}}}`, `{"spec":{"securityContext":{}}}`},
		{"lists without a strategy are replaced", `{"spec":{"containers":[{"name":"a","args":["1","2"]}]}}`, `{"spec":{"containers":[{"name":"a","args":["3"]}]}}`, `{"spec":{"containers":[{"name":"a","args":["3"]}]}}`},
		{"nested lists merge", `{"spec":{"containers":[{"name":"a","env":[{"name":"X","value":"1"}]}]}}`,
			`{"spec":{"containers":[{"name":"a","env":[{"name":"Y","value":"2"}]}]}}`, `{"spec":{"containers":[{"name":"a","env":[{"name":"X","value":"1"},{"name":"Y","value":"2"}]}]}}`},
		{"retainKeys changes a volume's kind", `{"spec":{"volumes":[{"name":"v","emptyDir":{}}]}}`,
			`{"spec":{"volumes":[{"$retainKeys":["name","hostPath"],"name":"v","hostPath":{"path":"/x"}}]}}`, `{"spec":{"volumes":[{"name":"v","hostPath":{"path":"/x"}}]}}`},
		{"order is set", `{"spec":{"containers":[{"name":"a"},{"name":"b"}]}}`,
			`{"spec":{"$setElementOrder/containers":[{"name":"b"},{"name":"a"}],"containers":[{"name":"a","image":"1"}]}}`, `{"spec":{"containers":[{"name":"b"},{"name":"a","image":"1"}]}}`},
		{"what the server has alone keeps its place", `{"spec":{"containers":[{"name":"a"},{"name":"injected"},{"name":"b"}]}}`,
			`{"spec":{"$setElementOrder/containers":[{"name":"b"},{"name":"a"}],"containers":[{"name":"b","image":"1"}]}}`, `{"spec":{"containers":[{"name":"injected"},{"name":"b","image":"1"},{"name":"a"}]}}`},
		{"order alone", `{"spec":{"containers":[{"name":"a"},{"name":"b"}]}}`, `{"spec":{"$setElementOrder/containers":[{"name":"b"},{"name":"a"}]}}`, `{"spec":{"containers":[{"name":"b"},{"name":"a"}]}}`},
		{"finalizers are a set", `{"metadata":{"finalizers":["a"]}}`, `{"metadata":{"finalizers":["a","b"]}}`, `{"metadata":{"finalizers":["a","b"]}}`},
		{"and shrink by name", `{"metadata":{"finalizers":["a","b"]}}`, `{"metadata":{"$deleteFromPrimitiveList/finalizers":["a"]}}`, `{"metadata":{"finalizers":["b"]}}`},
		{"conditions merge by type", `{"status":{"conditions":[{"type":"Ready","status":"False"},{"type":"X","status":"True"}]}}`,
			`{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, `{"status":{"conditions":[{"type":"Ready","status":"True"},{"type":"X","status":"True"}]}}`},
		{"numbers are keys too", `{"spec":{"containers":[{"name":"a","ports":[{"containerPort":80,"name":"x"}]}]}}`,
			`{"spec":{"containers":[{"name":"a","ports":[{"containerPort":80,"name":"y"},{"containerPort":81}]}]}}`, `{"spec":{"containers":[{"name":"a","ports":[{"containerPort":80,"name":"y"},{"containerPort":81}]}]}}`},
		{"an item without its key", `{"spec":{"containers":[{"name":"a"}]}}`, `{"spec":{"containers":[{"image":"x"}]}}`, "error"},
		{"an unknown directive", `{}`, `{"spec":{"$patch":"explode"}}`, "error"},
		{"directives do not become data", `{}`, `{"spec":{"$setElementOrder/containers":[{"name":"a"}],"containers":[{"name":"a","$patch":"delete"}]}}`, `{"spec":{"containers":[]}}`},
	} {
		got, err := Strategic(decode(t, c.doc).(map[string]any), decode(t, c.patch).(map[string]any), reflect.TypeFor[corev1.Pod]())
		check(t, c.name, any(got), err, c.want)
	}
}
