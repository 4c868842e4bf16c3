package kubelet

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// fakeAPI serves pods to one kubelet the way an API server does: list, watch, strategic patches of the status, deletion
// with a UID precondition. Of all other kinds it has none and accepts every write.
type fakeAPI struct {
	mu       sync.Mutex
	rv       int
	pods     map[string]*v1.Pod // by name
	history  []*v1.Pod          // every version that was ever stored
	watchers []chan []byte
	patches  int
	events   []string
}

func startFakeAPI(t *testing.T) (*fakeAPI, string) {
	t.Helper()
	f := &fakeAPI{pods: map[string]*v1.Pod{}}
	s := httptest.NewServer(f)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	path := filepath.Join(t.TempDir(), "kubeconfig")
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":%q}}]}`, s.URL)
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return f, path
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Path == "/api/v1/pods" && r.URL.Query().Get("watch") != "":
		f.watch(w, r)
	case r.URL.Path == "/api/v1/pods":
		f.list(w)
	case len(parts) >= 6 && parts[4] == "pods":
		f.pod(w, r, parts[5])
	case strings.HasSuffix(r.URL.Path, "/events") && r.Method == http.MethodPost:
		body, _ := io.ReadAll(r.Body)
		f.mu.Lock()
		f.events = append(f.events, string(body))
		f.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"apiVersion":"v1","kind":"Event","metadata":{"name":"e","namespace":"default"}}`)
	case r.URL.Query().Get("watch") != "":
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case parts[len(parts)-1] == "services":
		io.WriteString(w, `{"apiVersion":"v1","kind":"ServiceList","metadata":{"resourceVersion":"1"},"items":[]}`)
	case parts[len(parts)-1] == "configmaps":
		io.WriteString(w, `{"apiVersion":"v1","kind":"ConfigMapList","metadata":{"resourceVersion":"1"},"items":[]}`)
	case strings.Contains(r.URL.Path, "/nodes"):
		io.WriteString(w, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n","uid":"n"}}`)
	case strings.Contains(r.URL.Path, "/leases"):
		io.WriteString(w, `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"n"}}`)
	default:
		refuse(w, http.StatusNotFound, "NotFound")
	}
}

func refuse(w http.ResponseWriter, code int, reason string) {
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"apiVersion":"v1","kind":"Status","status":"Failure","reason":%q,"code":%d}`, reason, code)
}

func (f *fakeAPI) list(w http.ResponseWriter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := v1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	l.ResourceVersion = strconv.Itoa(f.rv)
	for _, p := range f.pods {
		l.Items = append(l.Items, *p)
	}
	json.NewEncoder(w).Encode(l)
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request) {
	c := make(chan []byte, 1000)
	since, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	f.mu.Lock()
	for _, p := range f.history {
		if n, _ := strconv.Atoi(p.ResourceVersion); n > since {
			c <- line("MODIFIED", p)
		}
	}
	f.watchers = append(f.watchers, c)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.watchers = slices.DeleteFunc(f.watchers, func(o chan []byte) bool { return o == c })
		f.mu.Unlock()
	}()
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case b := <-c:
			w.Write(b)
			w.(http.Flusher).Flush()
		}
	}
}

func line(op string, p *v1.Pod) []byte {
	b, _ := json.Marshal(map[string]any{"type": op, "object": p})
	return append(b, '\n')
}

// store keeps a new version of a pod and tells the watchers; the caller holds mu.
func (f *fakeAPI) store(op string, p *v1.Pod) {
	f.rv++
	p.ResourceVersion = strconv.Itoa(f.rv)
	p.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	if op == "DELETED" {
		delete(f.pods, p.Name)
	} else {
		f.pods[p.Name] = p
		f.history = append(f.history, p)
	}
	for _, w := range f.watchers {
		w <- line(op, p)
	}
}

func (f *fakeAPI) pod(w http.ResponseWriter, r *http.Request, name string) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.pods[name]
	if old == nil {
		refuse(w, http.StatusNotFound, "NotFound")
		return
	}
	switch r.Method {
	case http.MethodPatch:
		f.patches++
		if !strings.Contains(string(body), `"uid":"`+string(old.UID)+`"`) {
			refuse(w, http.StatusConflict, "Conflict")
			return
		}
		before, _ := json.Marshal(old)
		after, err := strategicpatch.StrategicMergePatch(before, body, &v1.Pod{})
		if err != nil {
			refuse(w, http.StatusBadRequest, "BadRequest")
			return
		}
		p := &v1.Pod{}
		if err := json.Unmarshal(after, p); err != nil {
			refuse(w, http.StatusInternalServerError, "InternalError")
			return
		}
		f.store("MODIFIED", p)
		json.NewEncoder(w).Encode(p)
	case http.MethodDelete:
		gone := old.DeepCopy()
		f.store("DELETED", gone)
		json.NewEncoder(w).Encode(gone)
	default:
		json.NewEncoder(w).Encode(old)
	}
}

// put stores a pod as a user would.
func (f *fakeAPI) put(p *v1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.store("ADDED", p.DeepCopy())
}

// remove asks for a graceful deletion.
func (f *fakeAPI) remove(name string, grace int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pods[name].DeepCopy()
	now := metav1.Now()
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
	f.store("MODIFIED", p)
}

// get returns the newest version of a pod, nil if there is none.
func (f *fakeAPI) get(name string) *v1.Pod {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pods[name]
}
