package manifest

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/standalone/api"
	"worknode/standalone/store"
)

func TestProblemsNameFileDocumentLineAndField(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  contaners: []\n", `f.yaml: document 1, line 5: Pod: unknown field "spec.contaners"`},
		{"# first\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata:\n  n: 1\n", `f.yaml: document 2, line 10: ConfigMap: data: it is a number`},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: a\n    image: x\n    ports:\n    - containerPort: eighty\n", `f.yaml: document 1, line 9: Pod: spec.containers.ports.containerPort: it is a string, want int32`},
		{"apiVersion: v1\nkind: [\n", "f.yaml: document 1, line "},
		{"apiVersion: v1\nkind: Pot\nmetadata: {name: a}\n", "f.yaml: document 1, line 2: this node knows no kind Pot of v1"},
		{"kind: Pod\n", "f.yaml: document 1, line 1: apiVersion and kind are missing"},
		{"apiVersion: v1\nkind: Pod\nmetadata: {}\n", "f.yaml: document 1, line 3: Pod: metadata.name is missing"},
		{"- a\n- b\n", "f.yaml: document 1, line 1: this is not an object"},
		{"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: x, a: y}\n", "f.yaml: document 1, line 4"},
		{"apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: a}\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {nam: b}\n", "f.yaml: document 1, line 9: items[1]: ConfigMap: unknown field \"metadata.nam\""},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f.yaml"), []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, problems := readDir(dir)
		if len(problems) != 1 || !strings.HasPrefix(problems[0].Error(), c.want) {
			t.Errorf("%q\n got %v\nwant %s…", c.text, problems, c.want)
		}
	}
}

func TestGoodDocumentsAreReadFromEveryForm(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml":             "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\n---\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: two}\n",
		"b.json":             `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"three","namespace":"two"}}`,
		"manifests/c.yml":    "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: four}}\n",
		".hidden.yaml":       "nonsense",
		"images/config.yaml": "nonsense",
		"notes.txt":          "nonsense",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	docs, problems := readDir(dir)
	var got []string
	for _, d := range docs {
		got = append(got, d.source+" "+d.resource.Kind+" "+d.ns+"/"+d.name)
	}
	want := "a.yaml#1 ConfigMap default/one, a.yaml#2 Namespace /two, b.json#1 ConfigMap two/three, manifests/c.yml#1.1 Secret default/four"
	if len(problems) > 0 || strings.Join(got, ", ") != want {
		t.Errorf("got  %s\nwant %s\nproblems %v", strings.Join(got, ", "), want, problems)
	}
}

// world is a folder and the objects that a keeper makes of it; pass looks once.
type world struct {
	t       *testing.T
	dir     string
	objects *store.Store
	server  *api.Server
	keeper  *Keeper
}

func newWorld(t *testing.T) *world {
	t.Helper()
	objects, err := store.Open("")
	if err != nil {
		t.Fatal(err)
	}
	server, err := api.New(api.Config{Store: objects, NodeName: "n", ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"), Version: "v1.37.2"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return &world{t, dir, objects, server, New(dir, server, objects)}
}

func (w *world) write(name, text string) {
	w.t.Helper()
	file := filepath.Join(w.dir, name)
	var err error
	if text == "" {
		err = os.Remove(file)
	} else {
		err = os.WriteFile(file, []byte(text), 0o644)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.keeper.pass()
}

func (w *world) configMap(name string) *v1.ConfigMap {
	item := w.objects.Get(store.ConfigMaps, "default", name)
	if item == nil {
		return nil
	}
	return item.Object.(*v1.ConfigMap)
}

const settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: \"1\", b: \"2\"}\n"

func TestAFileIsKeptAppliedAndOthersFieldsStay(t *testing.T) {
	w := newWorld(t)
	w.write("s.yaml", settings)
	if cm := w.configMap("settings"); cm == nil || cm.Data["b"] != "2" || cm.Annotations[SourceAnnotation] != "s.yaml#1" {
		t.Fatalf("applied: %+v", cm)
	}
	// Somebody adds a key of his own; the file drops one of its own.
	item := w.objects.Get(store.ConfigMaps, "default", "settings")
	mine := item.Clone().(*v1.ConfigMap)
	mine.Data["c"] = "3"
	if _, err := w.objects.Put(store.ConfigMaps, mine, item); err != nil {
		t.Fatal(err)
	}
	w.write("s.yaml", strings.Replace(settings, `, b: "2"`, "", 1))
	if cm := w.configMap("settings"); cm.Data["a"] != "1" || cm.Data["b"] != "" || cm.Data["c"] != "3" {
		t.Errorf("after the change: %v", cm.Data)
	}
	// A file that is broken for the moment costs nothing, one that is gone its objects.
	w.write("s.yaml", "kind: [")
	if w.configMap("settings") == nil || len(w.keeper.Problems()) != 1 {
		t.Errorf("a broken file took its object away, or was not told: %v", w.keeper.Problems())
	}
	w.write("s.yaml", "")
	if w.configMap("settings") != nil || len(w.keeper.Problems()) != 0 {
		t.Error("the object outlives its file")
	}
}

// An editor truncates a file before it writes it: what it declared must outlive that moment.
func TestATruncatedFileDeletesNothingAtOnce(t *testing.T) {
	w := newWorld(t)
	w.write("s.yaml", settings)
	w.write("s.yaml", "# nothing yet")
	if w.configMap("settings") == nil {
		t.Fatal("the object went with the first half of a write")
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(w.dir, "s.yaml"), old, old); err != nil {
		t.Fatal(err)
	}
	if again := w.keeper.pass(); again != 0 || w.configMap("settings") != nil {
		t.Errorf("the object stays although its document is gone for good")
	}
}

func TestWhatWasDeclaredBeforeARestartIsKnown(t *testing.T) {
	w := newWorld(t)
	w.write("s.yaml", settings)
	if err := os.Remove(filepath.Join(w.dir, "s.yaml")); err != nil {
		t.Fatal(err)
	}
	New(w.dir, w.server, w.objects).pass()
	if w.configMap("settings") != nil {
		t.Error("the file went while no supervisor ran, its object stays")
	}
}

func TestAPodWhoseSpecChangesMakesRoomForTheNewOne(t *testing.T) {
	w := newWorld(t)
	text := "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: a:1, command: [x]}]}\n"
	w.write("p.yaml", text)
	pod := func() *v1.Pod {
		if item := w.objects.Get(store.Pods, "default", "p"); item != nil {
			return item.Object.(*v1.Pod)
		}
		return nil
	}
	if pod() == nil {
		t.Fatal("no pod")
	}
	w.write("p.yaml", strings.Replace(text, "[x]", "[z]", 1))
	if p := pod(); p == nil || p.DeletionTimestamp == nil {
		t.Fatalf("the old pod is not ending: %+v, problems %v", p, w.keeper.Problems())
	}
	zero := int64(0)
	if _, _, err := w.server.Delete(store.Pods, "default", "p", &metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err) // what the kubelet does when the pod has ended
	}
	w.keeper.pass()
	if p := pod(); p == nil || p.Spec.Containers[0].Command[0] != "z" {
		t.Errorf("the new pod: %+v", p)
	}
	w.write("p.yaml", strings.Replace(text, "name: c,", "name: UPPER,", 1))
	if p := pod(); p == nil || p.DeletionTimestamp != nil || len(w.keeper.Problems()) != 1 {
		t.Errorf("a bad new spec ended the good old pod, or was not told: %v", w.keeper.Problems())
	}
}

func TestADeletedObjectComesBack(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(filepath.Join(w.dir, "s.yaml"), []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	first, ended := make(chan struct{}), make(chan struct{})
	go func() { w.keeper.Run(ctx, func() { close(first) }); close(ended) }()
	<-first
	uid := w.configMap("settings").UID
	_, _, cursor := w.objects.ListAndWatch(store.ConfigMaps, "")
	defer cursor.Close()
	if _, _, err := w.server.Delete(store.ConfigMaps, "default", "settings", &metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for {
		<-cursor.Ready()
		if cm := w.configMap("settings"); cm != nil && cm.UID != uid {
			break
		}
		if _, _, err := cursor.Next(make([]store.Event, 0, 8)); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	<-ended
}
