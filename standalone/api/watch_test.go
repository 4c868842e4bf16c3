package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"worknode/kube"
	"worknode/standalone/store"
)

// eventually waits until ok, and says what was missing if it does not come.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("after 10 s still not: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

// stream opens a watch and returns a function that reads its next event.
func (w *world) stream(path string) func() (string, map[string]any) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	w.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", w.url+path, nil)
	if err != nil {
		w.Fatal(err)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 {
		w.Fatalf("watch: %s", resp.Status)
	}
	lines := bufio.NewReader(resp.Body)
	return func() (string, map[string]any) {
		w.Helper()
		line, err := lines.ReadBytes('\n')
		if err != nil {
			w.Fatalf("next event: %v", err)
		}
		var e struct {
			Type   string
			Object map[string]any
		}
		if err := json.Unmarshal(line, &e); err != nil {
			w.Fatalf("%v in %s", err, line)
		}
		return e.Type, e.Object
	}
}

func (w *world) expect(next func() (string, map[string]any), kind, name string) {
	w.Helper()
	got, obj := next()
	if n := at(obj, "metadata", "name"); got != kind || n != name {
		w.Fatalf("%s %v, want %s %s", got, n, kind, name)
	}
}

func cm(name, label string) string {
	return fmt.Sprintf(`{"metadata":{"name":%q,"labels":{"l":%q}}}`, name, label)
}

const cms = "/api/v1/namespaces/default/configmaps"

func TestWatchFromAVersion(t *testing.T) {
	w := start(t)
	rv := at(w.must(201, "POST", cms, cm("a", "x")), "metadata", "resourceVersion")
	w.must(201, "POST", cms, cm("b", "x"))
	next := w.stream(fmt.Sprintf("%s?watch=1&resourceVersion=%v", cms, rv))
	w.expect(next, "ADDED", "b")
	w.must(200, "PUT", cms+"/a", cm("a", "y"))
	w.expect(next, "MODIFIED", "a")
	w.must(200, "DELETE", cms+"/b", "")
	w.expect(next, "DELETED", "b")
}

func TestWatchSeesObjectsEnterAndLeaveItsSelection(t *testing.T) {
	w := start(t)
	next := w.stream(cms + "?watch=1&labelSelector=l%3Dx")
	w.must(201, "POST", cms, cm("a", "y"))
	w.must(201, "POST", cms, cm("b", "x"))
	w.expect(next, "ADDED", "b")
	w.must(200, "PUT", cms+"/a", cm("a", "x"))
	w.expect(next, "ADDED", "a")
	w.must(200, "PUT", cms+"/b", cm("b", "z"))
	w.expect(next, "DELETED", "b")
}

func TestWatchListEndsItsStartWithABookmark(t *testing.T) {
	w := start(t)
	w.must(201, "POST", cms, cm("a", "x"))
	next := w.stream(cms + "?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")
	w.expect(next, "ADDED", "a")
	kind, obj := next()
	if kind != "BOOKMARK" || at(obj, "metadata", "annotations", "k8s.io/initial-events-end") != "true" {
		t.Fatalf("%s %v", kind, obj)
	}
	if rv := at(obj, "metadata", "resourceVersion"); rv != store.FormatRV(w.store.RV()) {
		t.Errorf("bookmark at %v, store at %d", rv, w.store.RV())
	}
}

func TestAVersionThatIsGoneAnswers410(t *testing.T) {
	w := start(t)
	gone := w.must(410, "GET", cms+"?watch=1&resourceVersion=99999999", "")
	w.want(gone, "Expired", "reason")
}

func TestWatchAsATable(t *testing.T) {
	w := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", w.url+pods+"?watch=1", nil)
	req.Header.Set("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	w.must(201, "POST", pods, podJSON)
	line, err := bufio.NewReader(resp.Body).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var e map[string]any
	if err := json.Unmarshal(line, &e); err != nil {
		t.Fatal(err)
	}
	w.want(e, "Table", "object", "kind")
	w.want(e, "Name", "object", "columnDefinitions", 0, "name")
	w.want(e, "0/1", "object", "rows", 0, "cells", 1)
	w.want(e, "PartialObjectMetadata", "object", "rows", 0, "object", "kind")
}

// restConfig is how client-go reaches the server.
func (w *world) restConfig() *rest.Config {
	return &rest.Config{Host: w.url, TLSClientConfig: rest.TLSClientConfig{CAData: w.ca, CertData: w.cert, KeyData: w.key}, QPS: -1}
}

// TestReflectors: client-go's own list-and-watch, in both formats, keeps a cache equal to the store, also across a
// server that forgot the past.
func TestReflectors(t *testing.T) {
	for _, format := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		t.Run(format, func(t *testing.T) {
			w := start(t)
			scheme := runtime.NewScheme()
			if err := corev1.AddToScheme(scheme); err != nil {
				t.Fatal(err)
			}
			metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
			cfg := w.restConfig()
			cfg.APIPath, cfg.GroupVersion, cfg.ContentType = "/api", &corev1.SchemeGroupVersion, format
			cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
			client, err := rest.RESTClientFor(cfg)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				w.must(201, "POST", pods, strings.Replace(podJSON, `"web"`, fmt.Sprintf(`"p%d"`, i), 1))
			}
			lw := cache.NewListWatchFromClient(client, "pods", "", fields.OneTermEqualSelector("spec.nodeName", "node-1"))
			seen := cache.NewStore(cache.MetaNamespaceKeyFunc)
			go cache.NewReflector(lw, &corev1.Pod{}, seen, 0).RunWithContext(t.Context())
			eventually(t, "three pods in the cache", func() bool { return len(seen.List()) == 3 })
			for i := range 20 {
				w.must(200, "PATCH", pods+"/p1/status", fmt.Sprintf(`{"status":{"message":"%d"}}`, i), "Content-Type", "application/merge-patch+json")
			}
			w.must(200, "DELETE", pods+"/p0?gracePeriodSeconds=0", "")
			eventually(t, "the last status and the deletion", func() bool {
				one, has, _ := seen.GetByKey("default/p1")
				_, still, _ := seen.GetByKey("default/p0")
				return has && !still && one.(*corev1.Pod).Status.Message == "19"
			})
			one, _, _ := seen.GetByKey("default/p1")
			if got := one.(*corev1.Pod).Spec.Containers[0].Image; got != "img:1" {
				t.Errorf("image %q", got)
			}
		})
	}
}

// TestKubeClient: the client that kubelet and proxy use.
func TestKubeClient(t *testing.T) {
	w := start(t)
	c, err := kube.For(w.restConfig())
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	deltas := make(chan kube.Delta, 100)
	go kube.Follow(ctx, c, kube.Pods, kube.Where{Field: "spec.nodeName=node-1"}, func(d kube.Delta) { deltas <- d })
	if d := <-deltas; d.Op != kube.Synced {
		t.Fatalf("first is %v", d)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i:1"}}}}
	if err := c.Create(ctx, kube.Pods, "default", pod, pod); err != nil {
		t.Fatal(err)
	}
	if d := <-deltas; d.Op != kube.Put || d.Object.(*corev1.Pod).UID != pod.UID || pod.Spec.NodeName != "node-1" {
		t.Fatalf("%v %v", d, pod)
	}
	grace := int64(0)
	if err := c.Delete(ctx, kube.Pods, "default", "web", &metav1.DeleteOptions{GracePeriodSeconds: &grace, Preconditions: &metav1.Preconditions{UID: &pod.UID}}); err != nil {
		t.Fatal(err)
	}
	if d := <-deltas; d.Op != kube.Delete {
		t.Fatalf("%v", d)
	}
}

// BenchmarkStatusPatch is what the kubelet does for each change of a pod, over TLS.
func BenchmarkStatusPatch(b *testing.B) {
	s, err := store.Open("")
	if err != nil {
		b.Fatal(err)
	}
	server, err := New(Config{Store: s, NodeName: "n"})
	if err != nil {
		b.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i:1"}}}}
	if _, err := server.Create(store.Pods, "default", pod, Write{}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		change, err := patcher("application/strategic-merge-patch+json", fmt.Appendf(nil, `{"status":{"message":"%d","conditions":[{"type":"Ready","status":"True"}]}}`, i), store.Pods)
		if err != nil {
			b.Fatal(err)
		}
		r := &request{resource: store.Pods, namespace: "default", name: "web"}
		_, err = server.Update(store.Pods, "default", "web", Write{Status: true}, func(old *store.Item) (store.Object, error) {
			doc, err := document(old.JSON())
			if err != nil {
				return nil, err
			}
			if doc, err = change(doc); err != nil {
				return nil, err
			}
			obj, _, err := r.fromDocument(doc, nil, warn)
			return obj, err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
