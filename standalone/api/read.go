package api

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/yaml"

	"worknode/standalone/store"
)

// get answers GET of one object.
func (s *Server) get(w http.ResponseWriter, r *request) error {
	item, err := s.find(r.resource, r.namespace, r.name)
	if err != nil {
		return err
	}
	return s.writeItem(w, r, http.StatusOK, item)
}

func (s *Server) find(r *store.Resource, namespace, name string) (*store.Item, error) {
	if item := s.Store.Get(r, namespace, name); item != nil {
		return item, nil
	}
	return nil, apierrors.NewNotFound(r.GR(), name)
}

// list answers GET of a collection, always whole and always the newest state: it is in memory, so chunks (limit and
// continue) would cost more than they save.
func (s *Server) list(w http.ResponseWriter, r *request) error {
	sel, err := r.selector()
	if err != nil {
		return err
	}
	if err := s.checkListVersion(r); err != nil {
		return err
	}
	f, err := negotiate(r.Request)
	if err != nil {
		return err
	}
	items, rv := s.pick(r.resource, &sel)
	var body []byte
	kind := typeJSON
	switch f {
	case formatProto:
		kind, body = typeProto, protoList(r.resource, items, rv)
	case formatTable:
		if body, err = s.table(r, items, rv, true); err != nil {
			return err
		}
	case formatYAML:
		kind = typeYAML
		if body, err = yaml.JSONToYAML(jsonList(r.resource, items, rv)); err != nil {
			return err
		}
	default:
		body = jsonList(r.resource, items, rv)
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-cache, private")
	_, _ = w.Write(body)
	return nil
}

// checkListVersion refuses versions that the server cannot give: a past one, or one from the future.
func (s *Server) checkListVersion(r *request) error {
	text, match := r.query.Get("resourceVersion"), r.query.Get("resourceVersionMatch")
	if text == "" || text == "0" {
		return nil
	}
	rv, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("Invalid value: %q: resourceVersion: %v", text, err))
	}
	now := s.Store.RV()
	if rv > now { // of a node whose state was removed; waiting for it would be for ever
		return expired(fmt.Errorf("too large resource version: %d, current: %d", rv, now))
	}
	if match == "Exact" && rv != now {
		return expired(fmt.Errorf("The provided resource version is too old: %d (%d)", rv, now))
	}
	return nil
}

// pick returns the objects that a selector matches and the version of the whole.
func (s *Server) pick(r *store.Resource, sel *selector) ([]*store.Item, uint64) {
	if name, one := sel.only(); one && (sel.namespace != "" || !r.Namespaced) {
		rv := s.Store.RV() // before the look: a version may be older than what is shown, never newer
		if item := s.Store.Get(r, sel.namespace, name); sel.matches(item) {
			return []*store.Item{item}, max(rv, item.RV)
		}
		return nil, rv
	}
	items, rv := s.Store.List(r, sel.namespace)
	if sel.all {
		return items, rv
	}
	kept := items[:0]
	for _, item := range items {
		if sel.matches(item) {
			kept = append(kept, item)
		}
	}
	return kept, rv
}

func jsonList(r *store.Resource, items []*store.Item, rv uint64) []byte {
	size := 128
	for _, item := range items {
		size += len(item.JSON()) + 1
	}
	b := bytes.NewBuffer(make([]byte, 0, size))
	fmt.Fprintf(b, `{"kind":"%sList","apiVersion":"%s","metadata":{"resourceVersion":"%d"},"items":[`, r.Kind, r.APIVersion(), rv)
	for i, item := range items {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(item.JSON())
	}
	b.WriteString("]}\n")
	return b.Bytes()
}

// protoList is a list message: every XxxList of the API has its ListMeta in field 1 and its items in field 2.
func protoList(r *store.Resource, items []*store.Item, rv uint64) []byte {
	meta := appendField(nil, 2, []byte(store.FormatRV(rv))) // ListMeta.resourceVersion
	size := len(meta) + 8
	for _, item := range items {
		size += len(item.Proto()) + 1 + binary.MaxVarintLen32
	}
	list := appendField(make([]byte, 0, size), 1, meta)
	for _, item := range items {
		list = appendField(list, 2, item.Proto())
	}
	return envelope(make([]byte, 0, len(list)+64), r.APIVersion(), r.Kind+"List", list)
}
