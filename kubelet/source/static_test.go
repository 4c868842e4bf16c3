package source

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func manifest(name, image string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  containers:\n  - {name: c, image: %s}\n", name, image)
}

func TestParseMakesThePodTheNodes(t *testing.T) {
	pods, err := parse([]byte(manifest("etcd", "etcd:3")), "/m/etcd.yaml", "file", "node-1")
	if err != nil {
		t.Fatal(err)
	}
	p := pods[0]
	if p.Name != "etcd-node-1" || p.Namespace != "default" || p.Spec.NodeName != "node-1" {
		t.Errorf("%s/%s on %s", p.Namespace, p.Name, p.Spec.NodeName)
	}
	if !Static(p) || IsMirror(p) || p.Annotations[Hash] != string(p.UID) || len(p.UID) != 32 {
		t.Errorf("uid %s, annotations %v", p.UID, p.Annotations)
	}
	if p.Spec.RestartPolicy != v1.RestartPolicyAlways || p.Spec.TerminationGracePeriodSeconds == nil {
		t.Error("no defaults")
	}
	if len(p.Spec.Tolerations) != 1 || p.Spec.Tolerations[0].Effect != v1.TaintEffectNoExecute {
		t.Errorf("tolerations %v", p.Spec.Tolerations)
	}
	uid := func(text, file, node string) types.UID {
		again, err := parse([]byte(text), file, "file", node)
		if err != nil {
			t.Fatal(err)
		}
		return again[0].UID
	}
	if uid(manifest("etcd", "etcd:3")+"# a comment\n", "/m/etcd.yaml", "node-1") != p.UID {
		t.Error("a comment makes it another pod")
	}
	for what, other := range map[string]types.UID{
		"image": uid(manifest("etcd", "etcd:4"), "/m/etcd.yaml", "node-1"),
		"file":  uid(manifest("etcd", "etcd:3"), "/m/etcd2.yaml", "node-1"),
		"node":  uid(manifest("etcd", "etcd:3"), "/m/etcd.yaml", "node-2"),
	} {
		if other == p.UID {
			t.Errorf("another %s, the same UID", what)
		}
	}
}

func TestParseNamesFileAndField(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"no YAML":                      {"a: [", "/m/p.yaml: "},
		"no pod":                       {"apiVersion: v1\nkind: Service\n", "kind Service: a static pod is a v1 Pod"},
		"an unknown field":             {manifest("a", "i:1") + "  hostNetwrk: true\n", `unknown field "spec.hostNetwrk"`},
		"a field of another type":      {strings.Replace(manifest("a", "i:1"), "name: c", "name: c, stdin: often", 1), "spec.containers.stdin"},
		"no name":                      {"apiVersion: v1\nkind: Pod\nspec: {containers: [{name: c, image: i}]}\n", "metadata.name"},
		"no containers":                {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}\n", "spec.containers"},
		"a bad name":                   {manifest("A_b", "i:1"), "metadata.name"},
		"a ConfigMap volume":           {manifest("a", "i:1") + "  volumes: [{name: v, configMap: {name: x}}]\n", "spec.volumes[0]: Forbidden: a static pod cannot refer to a ConfigMap"},
		"a token":                      {manifest("a", "i:1") + "  volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]\n", "spec.volumes[0]: Forbidden: a static pod cannot refer to a ServiceAccount"},
		"a claim":                      {manifest("a", "i:1") + "  volumes: [{name: v, persistentVolumeClaim: {claimName: x}}]\n", "PersistentVolumeClaim"},
		"an account":                   {manifest("a", "i:1") + "  serviceAccountName: x\n", "spec.serviceAccountName"},
		"a pull secret":                {manifest("a", "i:1") + "  imagePullSecrets: [{name: x}]\n", "spec.imagePullSecrets[0]"},
		"a variable from a Secret":     {strings.Replace(manifest("a", "i:1"), "name: c", "name: c, env: [{name: E, valueFrom: {secretKeyRef: {name: s, key: k}}}]", 1), "spec.containers[0].env[0].valueFrom"},
		"variables from a ConfigMap":   {strings.Replace(manifest("a", "i:1"), "name: c", "name: c, envFrom: [{configMapRef: {name: s}}]", 1), "spec.containers[0].envFrom[0]"},
		"the same in a list, by index": {"apiVersion: v1\nkind: PodList\nitems:\n- {metadata: {name: a}, spec: {containers: []}}\n", "items[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			pods, err := parse([]byte(c.text), "/m/p.yaml", "file", "n")
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "/m/p.yaml") {
				t.Errorf("%d pods, error %v; want %q", len(pods), err, c.want)
			}
		})
	}
}

// pods is the room: what it was told, in order.
type pods struct {
	mu   sync.Mutex
	news chan string
	live map[types.UID]string
}

func newPods() *pods { return &pods{news: make(chan string, 100), live: map[types.UID]string{}} }

func (p *pods) Put(pod *v1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live[pod.UID] = pod.Name
	p.news <- "put " + pod.Name + " " + pod.Spec.Containers[0].Image
}

func (p *pods) Gone(pod *v1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.live[pod.UID]; !ok {
		p.news <- "gone without put"
	}
	delete(p.live, pod.UID)
	p.news <- "gone " + pod.Name
}

func (p *pods) Synced() { p.news <- "synced" }

func (p *pods) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-p.news:
			if got != w {
				t.Fatalf("got %q, want %q", got, w)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("nothing came, want %q", w)
		}
	}
	select {
	case got := <-p.news:
		t.Fatalf("got %q too", got)
	case <-time.After(50 * time.Millisecond):
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFolderFollowsItsFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	room := newPods()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { Folder(ctx, dir, "n", 20*time.Millisecond, room); close(done) }()
	room.expect(t, "synced") // a folder that is not there has no pods
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/.hidden.yaml", manifest("hidden", "i:1"))
	write(t, dir+"/a.yaml", manifest("a", "i:1"))
	room.expect(t, "put a-n i:1")
	write(t, dir+"/a.yaml", manifest("a", "i:2"))
	room.expect(t, "gone a-n", "put a-n i:2")
	write(t, dir+"/a.yaml", "apiVersion: v1\nkind: Pod\nmeta")
	room.expect(t) // a broken file keeps what it said
	write(t, dir+"/b.yaml", manifest("a", "i:3"))
	room.expect(t) // nor does a second pod of the same name count
	if err := os.Remove(dir + "/a.yaml"); err != nil {
		t.Fatal(err)
	}
	room.expect(t, "gone a-n", "put a-n i:3")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	room.expect(t, "gone a-n")
	stop()
	<-done
}

func TestWebKeepsWhatItLastSaid(t *testing.T) {
	var answer atomic.Value
	answer.Store(manifest("a", "i:1"))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Node") != "n" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte(answer.Load().(string)))
	}))
	defer server.Close()
	room := newPods()
	go Web(t.Context(), server.URL, http.Header{"X-Node": {"n"}}, "n", 10*time.Millisecond, room)
	room.expect(t, "put a-n i:1", "synced")
	answer.Store("")
	room.expect(t)
	answer.Store("apiVersion: v1\nkind: PodList\nitems:\n- " + strings.ReplaceAll(strings.TrimSuffix(manifest("b", "i:1"), "\n"), "\n", "\n  "))
	room.expect(t, "gone a-n", "put b-n i:1")
	answer.Store("apiVersion: v1\nkind: PodList\nitems: []\n")
	room.expect(t, "gone b-n")
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(manifest("a", "i:1")))
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{"metadata":{"name":"a"}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		pods, err := parse(text, "f", "file", "n")
		if err == nil {
			for _, p := range pods {
				if p.UID == "" || p.Name == "" || !strings.HasSuffix(p.Name, "-n") {
					t.Errorf("%q gives %+v", text, p.ObjectMeta)
				}
			}
		}
	})
}
