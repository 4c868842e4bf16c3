package apiserver

import (
	"bytes"
	"encoding/json"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
)

// watch sends what happens until the client goes, its time is over or the API breaks.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, res *resource) {
	sel, err := selectorOf(r)
	if err != nil {
		status(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	q := r.URL.Query()
	from, _ := strconv.ParseUint(q.Get("resourceVersion"), 10, 64)
	all := q.Get("sendInitialEvents") == "true" || from == 0
	s.mu.Lock()
	first := res.first
	s.mu.Unlock()
	if !all && from < first {
		status(w, http.StatusGone, metav1.StatusReasonExpired, "too old resource version")
		return
	}
	f := formatOf(r)
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", f.mediaType+";stream=watch")
	w.WriteHeader(http.StatusOK)
	if all {
		var items []runtime.Object
		items, from = s.selected(res, sel)
		for _, o := range items {
			_, _ = w.Write(f.frame(watch.Added, f.encode(o)))
		}
		if q.Get("sendInitialEvents") == "true" {
			_, _ = w.Write(f.frame(watch.Bookmark, f.encode(bookmark(res, from))))
		}
	}
	if out.Flush() != nil {
		return
	}
	var over <-chan time.Time
	if n, err := strconv.Atoi(q.Get("timeoutSeconds")); err == nil && n > 0 {
		t := time.NewTimer(time.Duration(n) * time.Second)
		defer t.Stop()
		over = t.C
	}
	s.follow(w, out, r, res, f, sel, from, over)
}

func (s *Server) follow(w http.ResponseWriter, out *http.ResponseController, r *http.Request, res *resource, f *format, sel selector, from uint64, over <-chan time.Time) {
	broken := make(chan struct{})
	s.mu.Lock()
	s.watches[broken] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watches, broken)
		s.mu.Unlock()
	}()
	for {
		s.mu.Lock()
		i := sort.Search(len(res.log), func(i int) bool { return res.log[i].version > from })
		changes, news := res.log[i:], s.news
		s.mu.Unlock()
		for _, c := range changes {
			from = c.version
			if kind, yes := sel.sees(c); yes {
				if _, err := w.Write(c.coded.frame(f, kind, c.now)); err != nil {
					return
				}
			}
		}
		if len(changes) > 0 && out.Flush() != nil {
			return
		}
		select {
		case <-news:
		case <-over:
			return
		case <-broken:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// bookmark tells that all there was has been sent.
func bookmark(res *resource, version uint64) runtime.Object {
	o, err := scheme.New(res.gvk)
	if err != nil {
		panic(err)
	}
	o.GetObjectKind().SetGroupVersionKind(res.gvk)
	m := o.(metav1.Object)
	m.SetResourceVersion(strconv.FormatUint(version, 10))
	m.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	return o
}

// selector is what a client wants to see.
type selector struct {
	labels labels.Selector
	fields fields.Selector
}

func selectorOf(r *http.Request) (selector, error) {
	l, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		return selector{}, err
	}
	f, err := fields.ParseSelector(r.URL.Query().Get("fieldSelector"))
	return selector{l, f}, err
}

func (s selector) matches(o object) bool {
	if !s.labels.Matches(labels.Set(o.GetLabels())) {
		return false
	}
	if s.fields.Empty() {
		return true
	}
	set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
	if svc, ok := o.(*corev1.Service); ok {
		set["spec.clusterIP"], set["spec.type"] = svc.Spec.ClusterIP, string(svc.Spec.Type)
	}
	return s.fields.Matches(set)
}

// sees tells what a change is for this selector: an object that stops matching is deleted for it.
func (s selector) sees(c change) (watch.EventType, bool) {
	was, is := c.before != nil && s.matches(c.before), c.kind != watch.Deleted && s.matches(c.now)
	switch {
	case was && is:
		return watch.Modified, true
	case was:
		return watch.Deleted, true
	case is:
		return watch.Added, true
	}
	return "", false
}

// format is one way to write objects.
type format struct {
	mediaType string
	info      runtime.SerializerInfo
}

var (
	codecs      = serializer.NewCodecFactory(scheme)
	jsonFormat  = newFormat(runtime.ContentTypeJSON)
	protoFormat = newFormat(runtime.ContentTypeProtobuf)
)

func newFormat(mediaType string) *format {
	info, ok := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), mediaType)
	if !ok {
		panic("no serializer for " + mediaType)
	}
	return &format{mediaType, info}
}

func formatOf(r *http.Request) *format {
	for _, accept := range r.Header.Values("Accept") {
		if strings.Contains(accept, runtime.ContentTypeProtobuf) {
			return protoFormat
		}
	}
	return jsonFormat
}

func (f *format) encode(o runtime.Object) []byte {
	var b bytes.Buffer
	if err := f.info.Serializer.Encode(o, &b); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// frame is one event on the wire: a line of JSON, or a message of protobuf after its length.
func (f *format) frame(kind watch.EventType, object []byte) []byte {
	e := &metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: object}}
	var b bytes.Buffer
	if f == jsonFormat {
		if err := json.NewEncoder(&b).Encode(e); err != nil {
			panic(err)
		}
		return b.Bytes()
	}
	w := f.info.StreamSerializer.NewFrameWriter(&b)
	if err := f.info.StreamSerializer.Encode(e, w); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// coded keeps the frames of a change.
type coded struct {
	mu     sync.Mutex
	frames map[string][]byte
}

func (c *coded) frame(f *format, kind watch.EventType, o runtime.Object) []byte {
	key := f.mediaType + string(kind)
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.frames[key]; b != nil {
		return b
	}
	if c.frames == nil {
		c.frames = map[string][]byte{}
	}
	b := f.frame(kind, f.encode(o))
	c.frames[key] = b
	return b
}
