// Package apiserver is as much of a Kubernetes API as a service proxy sees: Services, EndpointSlices, Nodes and
// ServiceCIDRs to list and to watch, in JSON or protobuf as the client likes. Whoever holds the Server writes the
// objects; clients may only read (events that they post are counted and thrown away). There is no defaulting and no
// validation: tests want to show proxies what a real server would never let through.
package apiserver

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// kept is how many changes of a resource a watch may be behind.
const kept = 200_000

var scheme = runtime.NewScheme()

func init() {
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme} {
		utilruntime.Must(add(scheme))
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
}

// resource is all objects of one kind, and what happened to them.
type resource struct {
	gvk     schema.GroupVersionKind
	objects map[string]object // by namespace/name
	log     []change
	first   uint64 // the oldest version that a watch may start from
}

type object interface {
	metav1.Object
	runtime.Object
}

// change is one event of the log. Its encodings are made once, however many watch.
type change struct {
	version uint64
	kind    watch.EventType // as a client sees it that selects everything
	now     object          // the last state, of a deleted object
	before  object          // nil for a new one
	coded   *coded
}

// Server is an API. Create one with New.
type Server struct {
	mu        sync.Mutex
	version   uint64
	resources map[string]*resource // by path: "/api/v1/services"
	news      chan struct{}        // closed and replaced at each change
	watches   map[chan struct{}]bool
	down      bool
	requests  map[string]int
}

// New returns an API without objects.
func New() *Server {
	s := &Server{version: 1, resources: map[string]*resource{}, news: make(chan struct{}), watches: map[chan struct{}]bool{}, requests: map[string]int{}}
	for path, gvk := range map[string]schema.GroupVersionKind{
		"/api/v1/services": corev1.SchemeGroupVersion.WithKind("Service"),
		"/api/v1/nodes":    corev1.SchemeGroupVersion.WithKind("Node"),
		"/apis/discovery.k8s.io/v1/endpointslices": discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"),
		"/apis/networking.k8s.io/v1/servicecidrs":  networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR"),
	} {
		s.resources[path] = &resource{gvk: gvk, objects: map[string]object{}, first: 1}
	}
	return s
}

// Put creates or replaces objects, in one step. The server owns them from now on.
func (s *Server) Put(objects ...runtime.Object) { s.apply(objects, false) }

// Delete removes objects; those that are not there are no error.
func (s *Server) Delete(objects ...runtime.Object) { s.apply(objects, true) }

func (s *Server) apply(objects []runtime.Object, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		s.one(o.(object), gone)
	}
	close(s.news)
	s.news = make(chan struct{})
}

func (s *Server) one(o object, gone bool) {
	gvks, _, err := scheme.ObjectKinds(o)
	if err != nil {
		panic(err) // our own test is wrong
	}
	var r *resource
	for _, one := range s.resources {
		if one.gvk == gvks[0] {
			r = one
		}
	}
	key := o.GetNamespace() + "/" + o.GetName()
	before := r.objects[key]
	if gone && before == nil {
		return
	}
	s.version++
	c := change{version: s.version, kind: watch.Added, coded: &coded{}}
	if before != nil {
		c.kind, c.before = watch.Modified, before
	}
	if gone {
		c.kind = watch.Deleted
		o = before.DeepCopyObject().(object)
		delete(r.objects, key)
	} else {
		o.GetObjectKind().SetGroupVersionKind(r.gvk)
		if o.GetUID() == "" {
			o.SetUID(uidOf(before, s.version))
		}
		if t := o.GetCreationTimestamp(); t.IsZero() {
			o.SetCreationTimestamp(metav1.NewTime(time.Unix(1_700_000_000, 0)))
		}
		r.objects[key] = o
	}
	o.SetResourceVersion(strconv.FormatUint(s.version, 10))
	c.now = o
	if r.log = append(r.log, c); len(r.log) > 2*kept {
		r.log = slices.Clone(r.log[kept:])
		r.first = r.log[0].version
	}
}

// Break ends all watches and refuses every request until Mend: the API is away.
func (s *Server) Break() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = true
	for w := range s.watches {
		close(w)
		delete(s.watches, w)
	}
}

// Mend ends what Break began.
func (s *Server) Mend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = false
}

// Requests counts what was asked: "list services", "watch nodes", "post events".
func (s *Server) Requests() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]int{}
	for k, v := range s.requests {
		out[k] = v
	}
	return out
}

// Serve answers on l until it is closed.
func (s *Server) Serve(l net.Listener) {
	_ = (&http.Server{Handler: s, ReadHeaderTimeout: time.Minute}).Serve(l)
}

// ServeHTTP is the API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, name := strings.TrimSuffix(r.URL.Path, "/"), ""
	s.mu.Lock()
	down := s.down
	res := s.resources[path]
	if i := strings.LastIndexByte(path, '/'); res == nil && i > 0 {
		if res = s.resources[path[:i]]; res != nil { // a name: of what has no namespace
			path, name = path[:i], path[i+1:]
		}
	}
	verb := map[bool]string{true: "list"}[r.Method == http.MethodGet]
	if verb == "" {
		verb = strings.ToLower(r.Method)
	} else if r.URL.Query().Get("watch") != "" && r.URL.Query().Get("watch") != "false" {
		verb = "watch"
	}
	s.requests[verb+" "+path[strings.LastIndexByte(path, '/')+1:]]++
	s.mu.Unlock()
	switch {
	case down:
		http.Error(w, "the API is away", http.StatusServiceUnavailable)
	case r.Method == http.MethodPost && strings.HasSuffix(path, "/events"):
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{"kind":"Event","apiVersion":"v1","metadata":{"name":"taken"}}`)
	case res == nil || r.Method != http.MethodGet:
		status(w, http.StatusNotFound, metav1.StatusReasonNotFound, r.Method+" "+r.URL.Path+" is not served here")
	case name != "":
		s.get(w, r, res, name)
	case verb == "watch":
		s.watch(w, r, res)
	default:
		s.list(w, r, res)
	}
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, res *resource, name string) {
	s.mu.Lock()
	o := res.objects["/"+name]
	s.mu.Unlock()
	if o == nil {
		status(w, http.StatusNotFound, metav1.StatusReasonNotFound, name+" not found")
		return
	}
	f := formatOf(r)
	w.Header().Set("Content-Type", f.mediaType)
	_, _ = w.Write(f.encode(o))
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, res *resource) {
	sel, err := selectorOf(r)
	if err != nil {
		status(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	list, err := scheme.New(res.gvk.GroupVersion().WithKind(res.gvk.Kind + "List"))
	if err != nil {
		panic(err)
	}
	items, version := s.selected(res, sel)
	if err := meta.SetList(list, items); err != nil {
		panic(err)
	}
	list.(metav1.ListInterface).SetResourceVersion(strconv.FormatUint(version, 10))
	list.GetObjectKind().SetGroupVersionKind(res.gvk.GroupVersion().WithKind(res.gvk.Kind + "List"))
	f := formatOf(r)
	w.Header().Set("Content-Type", f.mediaType)
	_, _ = w.Write(f.encode(list))
}

// selected returns the objects that sel selects, by key, and the version they are of.
func (s *Server) selected(res *resource, sel selector) ([]runtime.Object, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := make([]string, 0, len(res.objects))
	for k, o := range res.objects {
		if sel.matches(o) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	items := make([]runtime.Object, len(keys))
	for i, k := range keys {
		items[i] = res.objects[k]
	}
	return items, s.version
}

func uidOf(before object, version uint64) types.UID {
	if before != nil {
		return before.GetUID()
	}
	return types.UID("uid-" + strconv.FormatUint(version, 10))
}

func status(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	st := &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(jsonFormat.encode(st))
}

// Kubeconfig is the file that leads a client to an API at url, as the administrator of everything.
func Kubeconfig(url string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
users: [{name: u, user: {token: none}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, url)
}
