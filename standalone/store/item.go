package store

import (
	"encoding/json"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"
)

// Item is one version of one object. It never changes: whoever wants another version makes a deep copy and stores it.
// Its encodings are made once, however many watchers and lists send them.
type Item struct {
	Resource *Resource
	Object   Object // read-only
	RV       uint64
	stored   time.Time

	proto atomic.Pointer[[]byte]
	json  atomic.Pointer[[]byte]
}

// Proto is the object's protobuf message, without the API's envelope around it.
func (i *Item) Proto() []byte {
	if b := i.proto.Load(); b != nil {
		return *b
	}
	b := make([]byte, i.Object.Size())
	n, err := i.Object.MarshalToSizedBuffer(b)
	if err != nil { // a type of k8s.io/api that cannot be encoded is a broken build
		panic(fmt.Sprintf("encode %s %s as protobuf: %v", i.Resource.Kind, i.Object.GetName(), err))
	}
	b = b[len(b)-n:]
	i.proto.Store(&b)
	return b
}

// JSON is the object as JSON, apiVersion and kind included.
func (i *Item) JSON() []byte {
	if b := i.json.Load(); b != nil {
		return *b
	}
	b, err := json.Marshal(i.Object)
	if err != nil {
		panic(fmt.Sprintf("encode %s %s as JSON: %v", i.Resource.Kind, i.Object.GetName(), err))
	}
	i.json.Store(&b)
	return b
}

// Clone is a copy of the object that the caller may change.
func (i *Item) Clone() Object { return i.Object.DeepCopyObject().(Object) }

// FormatRV writes a resource version as the API does.
func FormatRV(rv uint64) string { return strconv.FormatUint(rv, 10) }

// newItem stamps the object with its version and its type. The object belongs to the store from here on.
func newItem(r *Resource, obj Object, rv uint64) *Item {
	obj.SetResourceVersion(FormatRV(rv))
	obj.GetObjectKind().SetGroupVersionKind(r.GVK())
	return &Item{Resource: r, Object: obj, RV: rv, stored: time.Now()}
}
