package object

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"worknode/fault"
	"worknode/kube"
)

// api is an API server that knows one object per path, in JSON, and counts who watches.
type api struct {
	mu       sync.Mutex
	objects  map[string]runtime.Object // "configmaps/shop/x"
	watchers map[string][]chan event
	watched  map[string]int // watches ever opened
	changed  chan struct{}  // closed and replaced whenever a watch comes or goes
	tokens   bool
	mute     chan struct{} // lists wait for it if not nil
}

type event struct {
	Type   string         `json:"type"`
	Object runtime.Object `json:"object"`
}

func newAPI(t *testing.T) (*api, *kube.Client) {
	t.Helper()
	a := &api{objects: map[string]runtime.Object{}, watchers: map[string][]chan event{}, watched: map[string]int{}, changed: make(chan struct{})}
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	c, err := kube.For(&rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	return a, c
}

func (a *api) notify() { close(a.changed); a.changed = make(chan struct{}) }

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/api/v1/"), "/")
	name, single := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	switch {
	case len(parts) == 5 && parts[4] == "token":
		a.token(w, r)
	case len(parts) == 4: // namespaces/NS/KIND/NAME
		a.get(w, parts[2]+"/"+parts[1]+"/"+parts[3])
	case len(parts) == 3 && single:
		key := parts[2] + "/" + parts[1] + "/" + name
		if r.URL.Query().Get("watch") != "" {
			a.watch(w, r, key)
		} else {
			a.list(w, key)
		}
	case parts[0] == "services":
		if r.URL.Query().Get("watch") != "" {
			a.watch(w, r, "services")
		} else {
			a.list(w, "services")
		}
	default:
		http.Error(w, "a node may not ask for "+r.URL.String(), http.StatusForbidden)
	}
}

func (a *api) get(w http.ResponseWriter, key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if o := a.objects[key]; o != nil {
		json.NewEncoder(w).Encode(o)
		return
	}
	w.WriteHeader(http.StatusNotFound)
	json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: 404})
}

func (a *api) list(w http.ResponseWriter, key string) {
	a.mu.Lock()
	mute := a.mute
	a.mu.Unlock()
	if mute != nil {
		<-mute
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	kind := map[string]string{"configmaps": "ConfigMapList", "secrets": "SecretList", "services": "ServiceList"}[strings.Split(key, "/")[0]]
	items := []runtime.Object{}
	for k, o := range a.objects {
		if k == key || strings.HasPrefix(k, key+"/") {
			items = append(items, o)
		}
	}
	json.NewEncoder(w).Encode(map[string]any{"kind": kind, "apiVersion": "v1", "metadata": map[string]string{"resourceVersion": "1"}, "items": items})
}

func (a *api) watch(w http.ResponseWriter, r *http.Request, key string) {
	ch := make(chan event, 16)
	a.mu.Lock()
	a.watchers[key] = append(a.watchers[key], ch)
	a.watched[key]++
	a.notify()
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.watchers[key] = slices.DeleteFunc(a.watchers[key], func(c chan event) bool { return c == ch })
		a.notify()
	}()
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case e := <-ch:
			json.NewEncoder(w).Encode(e)
			w.(http.Flusher).Flush()
		}
	}
}

func (a *api) token(w http.ResponseWriter, r *http.Request) {
	if !a.tokens {
		w.WriteHeader(http.StatusNotFound)
		json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Message: "no such path", Reason: metav1.StatusReasonNotFound, Code: 404})
		return
	}
	var req authv1.TokenRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	req.Status.Token = "for " + string(req.Spec.BoundObjectRef.UID) + " " + r.URL.Path
	req.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(time.Duration(*req.Spec.ExpirationSeconds) * time.Second))
	json.NewEncoder(w).Encode(req)
}

// put stores an object and tells who watches; watchKey is where they do.
func (a *api) put(key, watchKey string, o runtime.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	kind := "MODIFIED"
	if _, ok := a.objects[key]; !ok {
		kind = "ADDED"
	}
	a.objects[key] = o
	for _, ch := range a.watchers[watchKey] {
		ch <- event{kind, o}
	}
}

func (a *api) remove(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.objects[key]
	delete(a.objects, key)
	for _, ch := range a.watchers[key] {
		ch <- event{"DELETED", o}
	}
}

// watching waits until key has n open watches.
func (a *api) watching(t *testing.T, key string, n int) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		a.mu.Lock()
		have, changed := len(a.watchers[key]), a.changed
		a.mu.Unlock()
		if have == n {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s has %d watches, want %d", key, have, n)
		}
	}
}

func configMap(name, rv, value string) *v1.ConfigMap {
	return &v1.ConfigMap{TypeMeta: metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: "o", ResourceVersion: rv}, Data: map[string]string{"k": value}}
}

func podOf(t *testing.T, name, spec string) *v1.Pod {
	t.Helper()
	var pod v1.Pod
	if err := yaml.UnmarshalStrict([]byte("spec: "+spec), &pod); err != nil {
		t.Fatal(err)
	}
	pod.Namespace, pod.Name, pod.UID = "shop", name, types.UID("u-"+name)
	return &pod
}

const usesX = `{containers: [{name: c, envFrom: [{configMapRef: {name: x}}]}]}`

func awaitChange(t *testing.T, changes chan Key, want Key) {
	t.Helper()
	select {
	case got := <-changes:
		if got != want {
			t.Fatalf("change of %v, want %v", got, want)
		}
	case <-time.After(5 * time.Second):
		t.Fatalf("nobody told of the change of %v", want)
	}
}

func start(t *testing.T, client *kube.Client) (*Cache, chan Key) {
	ctx, cancel := context.WithCancel(context.Background())
	changes := make(chan Key, 16)
	c := New(ctx, client, func(ns, kind, name string) { changes <- Key{kind, ns, name} })
	t.Cleanup(func() { cancel(); c.Wait() })
	return c, changes
}

func TestOneWatchForAllPodsThatNameAnObject(t *testing.T) {
	a, client := newAPI(t)
	a.put("configmaps/shop/x", "", configMap("x", "1", "one"))
	c, changes := start(t, client)
	p1, p2 := podOf(t, "p1", usesX), podOf(t, "p2", usesX)
	c.Use(p1)
	c.Use(p2)
	c.Use(p2) // again, as for every change of its spec
	cm, err := c.ConfigMap(t.Context(), "shop", "x")
	if err != nil || cm.Data["k"] != "one" {
		t.Fatalf("%v %v", cm, err)
	}
	a.watching(t, "configmaps/shop/x", 1)
	if users := c.Users("shop", KindConfigMap, "x"); len(users) != 2 {
		t.Errorf("users %v", users)
	}
	a.put("configmaps/shop/x", "configmaps/shop/x", configMap("x", "2", "two"))
	awaitChange(t, changes, Key{KindConfigMap, "shop", "x"})
	if cm, err = c.ConfigMap(t.Context(), "shop", "x"); err != nil || cm.Data["k"] != "two" {
		t.Errorf("%v %v", cm, err)
	}
	a.remove("configmaps/shop/x")
	awaitChange(t, changes, Key{KindConfigMap, "shop", "x"})
	if _, err = c.ConfigMap(t.Context(), "shop", "x"); !fault.Is(err, fault.NotFound) || err.Error() != `configmap "x" not found` {
		t.Errorf("after its deletion: %v", err)
	}
	c.Drop("u-p1")
	a.watching(t, "configmaps/shop/x", 1)
	c.Drop("u-p2")
	c.Drop("u-p2")
	a.watching(t, "configmaps/shop/x", 0)
	if n := a.watched["configmaps/shop/x"]; n != 1 {
		t.Errorf("%d watches were opened for one object", n)
	}
}

func TestAbsentObjectIsNotFoundAtOnceAndAppears(t *testing.T) {
	a, client := newAPI(t)
	c, changes := start(t, client)
	pod := podOf(t, "p", usesX)
	c.Use(pod)
	if _, err := c.ConfigMap(t.Context(), "shop", "x"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("%v", err)
	}
	a.watching(t, "configmaps/shop/x", 1)
	a.put("configmaps/shop/x", "configmaps/shop/x", configMap("x", "2", "now"))
	awaitChange(t, changes, Key{KindConfigMap, "shop", "x"})
	if cm, err := c.With(t.Context()).ConfigMap("shop", "x"); err != nil || cm.Data["k"] != "now" {
		t.Errorf("%v %v", cm, err)
	}
}

func TestReadersWaitForTheFirstAnswerAndNoLonger(t *testing.T) {
	a, client := newAPI(t)
	a.mute = make(chan struct{})
	defer close(a.mute)
	c, _ := start(t, client)
	pod := podOf(t, "p", usesX)
	c.Use(pod)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.ConfigMap(ctx, "shop", "x"); !fault.Is(err, fault.Temporary) {
		t.Errorf("a silent API server: %v", err)
	}
}

func TestImmutableObjectsAreNotWatched(t *testing.T) {
	a, client := newAPI(t)
	cm := configMap("x", "1", "stone")
	yes := true
	cm.Immutable = &yes
	a.put("configmaps/shop/x", "", cm)
	c, _ := start(t, client)
	pod := podOf(t, "p", usesX)
	c.Use(pod)
	if got, err := c.ConfigMap(t.Context(), "shop", "x"); err != nil || got.Data["k"] != "stone" {
		t.Fatalf("%v %v", got, err)
	}
	a.watching(t, "configmaps/shop/x", 0)
}

func TestUnusedObjectIsReadDirectly(t *testing.T) {
	a, client := newAPI(t)
	a.put("secrets/shop/s", "", &v1.Secret{TypeMeta: metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "shop"}, Data: map[string][]byte{"k": []byte("v")}})
	c, _ := start(t, client)
	if s, err := c.Secret(t.Context(), "shop", "s"); err != nil || string(s.Data["k"]) != "v" {
		t.Errorf("%v %v", s, err)
	}
	if _, err := c.Secret(t.Context(), "shop", "none"); !fault.Is(err, fault.NotFound) || err.Error() != `secret "none" not found` {
		t.Errorf("%v", err)
	}
}

func TestServicesOfANamespace(t *testing.T) {
	a, client := newAPI(t)
	svc := func(ns, name, ip string) *v1.Service {
		return &v1.Service{TypeMeta: metav1.TypeMeta{Kind: "Service", APIVersion: "v1"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, UID: "s", ResourceVersion: "1"}, Spec: v1.ServiceSpec{ClusterIP: ip}}
	}
	a.put("services/default/kubernetes", "", svc("default", "kubernetes", "10.0.0.1"))
	a.put("services/shop/web", "", svc("shop", "web", "10.0.0.2"))
	a.put("services/shop/db", "", svc("shop", "db", "10.0.0.3"))
	a.put("services/other/x", "", svc("other", "x", "10.0.0.4"))
	c, _ := start(t, client)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.FollowServices(ctx) }()
	wait, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	if err := c.WaitServices(wait); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range c.Services("shop") {
		names = append(names, s.Namespace+"/"+s.Name)
	}
	if want := []string{"shop/db", "shop/web", "default/kubernetes"}; !slices.Equal(names, want) {
		t.Errorf("services %v, want %v", names, want)
	}
	cancel()
	<-done
}

func TestTokens(t *testing.T) {
	a, client := newAPI(t)
	c, changes := start(t, client)
	pod := podOf(t, "p", `{serviceAccountName: sa, containers: [{name: c}]}`)
	seconds := int64(1)
	want := &v1.ServiceAccountTokenProjection{ExpirationSeconds: &seconds}
	if _, err := c.Token(t.Context(), pod, want); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "automountServiceAccountToken") {
		t.Errorf("an API without tokens: %v", err)
	}
	a.tokens = true
	c.Use(pod)
	text, err := c.Token(t.Context(), pod, want)
	if err != nil || text != "for u-p /api/v1/namespaces/shop/serviceaccounts/sa/token" {
		t.Fatalf("%q %v", text, err)
	}
	awaitChange(t, changes, Key{KindToken, "shop", "p"})
	if users := c.Users("shop", KindToken, "p"); len(users) != 1 || users[0] != "u-p" {
		t.Errorf("who has the token: %v", users)
	}
	c.Drop("u-p")
	if users := c.Users("shop", KindToken, "p"); len(users) != 0 {
		t.Errorf("a dropped pod keeps %v", users)
	}
}

func TestReferences(t *testing.T) {
	pod := podOf(t, "p", `
  imagePullSecrets: [{name: pull}]
  initContainers: [{name: i, env: [{name: A, valueFrom: {secretKeyRef: {name: s1, key: k}}}]}]
  containers:
  - name: c
    envFrom: [{configMapRef: {name: x}}, {secretRef: {name: s2}}]
    env: [{name: A, valueFrom: {configMapKeyRef: {name: x, key: k}}}]
  volumes:
  - {name: a, configMap: {name: m1}}
  - {name: b, secret: {secretName: s2}}
  - {name: d, projected: {sources: [{configMap: {name: m2}}, {secret: {name: s3}}]}}
`)
	var got []string
	for _, k := range References(pod) {
		got = append(got, k.Kind+" "+k.Namespace+"/"+k.Name)
	}
	want := []string{"Secret shop/pull", "Secret shop/s1", "ConfigMap shop/x", "Secret shop/s2", "ConfigMap shop/m1", "ConfigMap shop/m2", "Secret shop/s3"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
