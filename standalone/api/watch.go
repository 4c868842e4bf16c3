package api

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/standalone/store"
)

const (
	bookmarkEvery = time.Minute
	watchDefault  = time.Hour // when the client names no end
	watchBatch    = 64        // events that are encoded before they are flushed
)

// watcher is one watch while it is answered.
type watcher struct {
	s       *Server
	r       *request
	sel     selector
	format  format
	out     bytes.Buffer
	headers bool // a table's column definitions were sent
}

// watch answers with a stream of changes.
func (s *Server) watch(w http.ResponseWriter, r *request) error {
	sel, err := r.selector()
	if err != nil {
		return err
	}
	f, err := negotiate(r.Request)
	if err != nil {
		return err
	}
	wt := &watcher{s: s, r: r, sel: sel, format: f}
	cursor, err := wt.open()
	if err != nil {
		return err
	}
	defer cursor.Close()
	kind := typeJSON
	if f == formatProto {
		kind = typeProto + ";stream=watch"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-cache, private")
	w.WriteHeader(http.StatusOK)
	wt.run(w, cursor)
	return nil
}

// open finds where the watch starts and puts what the client is to see first into the buffer.
func (wt *watcher) open() (*store.Cursor, error) {
	q := wt.r.query
	text := q.Get("resourceVersion")
	initial := isTrue(q.Get("sendInitialEvents"))
	if q.Get("sendInitialEvents") != "" && q.Get("resourceVersionMatch") != string(metav1.ResourceVersionMatchNotOlderThan) {
		return nil, invalidOptions("resourceVersionMatch", `sendInitialEvents requires setting resourceVersionMatch to "NotOlderThan"`)
	}
	if initial {
		if err := wt.s.checkListVersion(wt.r); err != nil {
			return nil, err
		}
	}
	fromNow := text == "" || text == "0"
	if !initial && !fromNow {
		rv, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, invalidOptions("resourceVersion", err.Error())
		}
		cursor, err := wt.s.Store.Watch(wt.r.resource, rv)
		if err != nil {
			return nil, expired(err)
		}
		return cursor, nil
	}
	items, rv, cursor := wt.s.Store.ListAndWatch(wt.r.resource, wt.sel.namespace)
	if q.Get("sendInitialEvents") == "false" {
		return cursor, nil
	}
	for _, item := range items {
		if wt.sel.matches(item) {
			wt.event("ADDED", item)
		}
	}
	if initial && isTrue(q.Get("allowWatchBookmarks")) {
		wt.bookmark(rv, true)
	}
	return cursor, nil
}

func invalidOptions(field, why string) error {
	return apierrors.NewBadRequest(fmt.Sprintf("ListOptions.meta.k8s.io \"\" is invalid: %s: Invalid value: %s", field, why))
}

// run sends until the client goes, its time is over, or it is too slow.
func (wt *watcher) run(w http.ResponseWriter, cursor *store.Cursor) {
	out := http.NewResponseController(w)
	flush := func() bool {
		if wt.out.Len() > 0 {
			_, err := w.Write(wt.out.Bytes())
			wt.out.Reset()
			if wt.out.Cap() > 64<<10 {
				wt.out = bytes.Buffer{}
			}
			if err != nil {
				return false
			}
		}
		return out.Flush() == nil
	}
	if !flush() {
		return
	}
	end := time.NewTimer(wt.lifetime())
	defer end.Stop()
	var marks <-chan time.Time
	if isTrue(wt.r.query.Get("allowWatchBookmarks")) {
		tick := time.NewTicker(bookmarkEvery)
		defer tick.Stop()
		marks = tick.C
	}
	var batch [watchBatch]store.Event
	for {
		mark := false
		select {
		case <-wt.r.Context().Done():
			return
		case <-end.C:
			return
		case <-marks:
			mark = true
		case <-cursor.Ready():
		}
		events, rv, err := cursor.Next(batch[:0])
		if err != nil {
			wt.error(expired(err))
			flush()
			return
		}
		for _, e := range events {
			wt.change(e)
		}
		clear(events) // what was sent need not be held
		if mark {
			wt.bookmark(rv, false)
		}
		if wt.out.Len() > 0 && !flush() {
			return
		}
	}
}

func (wt *watcher) lifetime() time.Duration {
	seconds, err := strconv.ParseInt(wt.r.query.Get("timeoutSeconds"), 10, 64)
	if err != nil || seconds <= 0 {
		return watchDefault
	}
	return time.Duration(seconds) * time.Second
}

// change sends an event as the selector sees it: an object that enters the selection is added, one that leaves it deleted.
func (wt *watcher) change(e store.Event) {
	now := e.Type != store.Deleted && wt.sel.matches(e.Item)
	before := wt.sel.matches(e.Prev)
	switch {
	case now && before:
		wt.event("MODIFIED", e.Item)
	case now:
		wt.event("ADDED", e.Item)
	case before && e.Type == store.Deleted:
		wt.event("DELETED", e.Item)
	case before:
		wt.event("DELETED", e.Item)
	}
}

func (wt *watcher) event(kind string, item *store.Item) {
	switch wt.format {
	case formatProto:
		wt.protoEvent(kind, envelope(nil, item.Resource.APIVersion(), item.Resource.Kind, item.Proto()))
	case formatTable:
		rows, err := wt.s.table(wt.r, []*store.Item{item}, item.RV, !wt.headers)
		if err != nil {
			return
		}
		wt.headers = true
		wt.jsonEvent(kind, rows)
	default:
		wt.jsonEvent(kind, item.JSON())
	}
}

// bookmark says up to which version the client knows everything.
func (wt *watcher) bookmark(rv uint64, initialEnd bool) {
	obj := wt.r.resource.New()
	obj.SetResourceVersion(store.FormatRV(rv))
	if initialEnd {
		obj.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	obj.GetObjectKind().SetGroupVersionKind(wt.r.resource.GVK())
	item := &store.Item{Resource: wt.r.resource, Object: obj, RV: rv}
	if wt.format == formatTable {
		rows, err := wt.s.table(wt.r, []*store.Item{item}, rv, !wt.headers)
		if err == nil {
			wt.jsonEvent("BOOKMARK", rows)
		}
		return
	}
	wt.event("BOOKMARK", item)
}

func (wt *watcher) error(err *apierrors.StatusError) {
	status := err.Status()
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	if wt.format == formatProto {
		if raw, err := status.Marshal(); err == nil {
			wt.protoEvent("ERROR", envelope(nil, "v1", "Status", raw))
		}
		return
	}
	wt.jsonEvent("ERROR", mustJSON(&status))
}

func (wt *watcher) jsonEvent(kind string, object []byte) {
	wt.out.WriteString(`{"type":"`)
	wt.out.WriteString(kind)
	wt.out.WriteString(`","object":`)
	wt.out.Write(bytes.TrimRight(object, "\n"))
	wt.out.WriteString("}\n")
}

// protoEvent appends one frame: four bytes of length, then a WatchEvent whose object is a RawExtension.
func (wt *watcher) protoEvent(kind string, object []byte) {
	raw := appendField(make([]byte, 0, len(object)+8), 1, object)
	event := appendField(make([]byte, 0, len(raw)+24), 1, []byte(kind))
	event = appendField(event, 2, raw)
	var length [4]byte
	binary.BigEndian.PutUint32(length[:], uint32(len(event)))
	wt.out.Write(length[:])
	wt.out.Write(event)
}
