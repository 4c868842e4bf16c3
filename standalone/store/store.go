// Package store keeps the objects of a standalone node: typed, in memory, every change numbered by one resource version
// and remembered for a while, so that watches can be taken up where they ended. What must survive the process goes into
// an append-only log that is written, but not synced, before a change is seen: `kill -9` loses nothing, a power cut may
// lose the last seconds, as anything else that the kernel had not written back.
//
// It is not an API server: it knows no verbs, defaults, rules or selectors.
package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"worknode/fault"
)

// Store is safe for concurrent use.
type Store struct {
	mu     sync.Mutex
	rv     uint64
	kinds  []kind // by Resource.index
	log    *journal
	logBad bool // the log could not be written; said once
}

type key struct{ namespace, name string }

type kind struct {
	items map[key]*Item
	past  history
}

// Open reads the objects kept below dir and starts to record there. An empty dir keeps nothing (for tests).
// Records that are damaged are logged and skipped: each costs one object at most.
func Open(dir string) (*Store, error) {
	s := &Store{kinds: make([]kind, len(All))}
	for i := range s.kinds {
		s.kinds[i] = kind{items: map[key]*Item{}, past: newHistory()}
	}
	if dir == "" {
		return s, nil
	}
	log, err := openJournal(dir, s.restore)
	if err != nil {
		return nil, err
	}
	s.log = log
	s.rv = max(s.rv, log.ceiling)
	for i := range s.kinds {
		s.kinds[i].past.floor = s.rv
	}
	return s, nil
}

// restore takes one record of the log.
func (s *Store) restore(rec record) {
	s.rv = max(s.rv, rec.rv)
	k := key{rec.namespace, rec.name}
	items := s.kinds[rec.resource.index].items
	if rec.op == opDelete {
		delete(items, k)
		return
	}
	obj := rec.resource.New()
	if err := obj.Unmarshal(rec.object); err != nil {
		slog.Error("object in the log cannot be read, dropping it", "kind", rec.resource.Kind, "namespace", k.namespace, "name", k.name, "err", err)
		return
	}
	items[k] = newItem(rec.resource, obj, rec.rv)
}

// Close ends recording. Changes after it are kept in memory only.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log == nil {
		return nil
	}
	log := s.log
	s.log = nil
	return log.close()
}

// RV is the version of the newest change.
func (s *Store) RV() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rv
}

// Get returns the present version of an object, nil if there is none.
func (s *Store) Get(r *Resource, namespace, name string) *Item {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kinds[r.index].items[key{namespace, name}]
}

// List returns the objects of one namespace (empty: of all), by namespace and name, and the version of the whole.
func (s *Store) List(r *Resource, namespace string) ([]*Item, uint64) {
	s.mu.Lock()
	items, rv := s.listLocked(r, namespace), s.rv
	s.mu.Unlock()
	sortItems(items)
	return items, rv
}

func (s *Store) listLocked(r *Resource, namespace string) []*Item {
	all := s.kinds[r.index].items
	items := make([]*Item, 0, len(all))
	for k, item := range all {
		if namespace == "" || k.namespace == namespace {
			items = append(items, item)
		}
	}
	return items
}

func sortItems(items []*Item) {
	slices.SortFunc(items, func(a, b *Item) int {
		if c := strings.Compare(a.Object.GetNamespace(), b.Object.GetNamespace()); c != 0 {
			return c
		}
		return strings.Compare(a.Object.GetName(), b.Object.GetName())
	})
}

// Put stores obj, which belongs to the store afterwards, as the successor of prev; nil prev creates.
// An obj equal to prev changes nothing and returns prev itself: no version, no event.
// Errors: Exists if prev is nil and the object is there; NotFound if prev is gone; Busy if prev is not the present version.
func (s *Store) Put(r *Resource, obj Object, prev *Item) (*Item, error) {
	k := key{obj.GetNamespace(), obj.GetName()}
	if prev != nil {
		obj.SetResourceVersion(FormatRV(prev.RV))
		same := &Item{Resource: r, Object: obj}
		if bytes.Equal(same.Proto(), prev.Proto()) {
			return prev, s.check(r, k, prev)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kd := &s.kinds[r.index]
	if err := kd.expect(r, k, prev); err != nil {
		return nil, err
	}
	item := newItem(r, obj, s.next())
	s.record(record{op: opPut, resource: r, namespace: k.namespace, name: k.name, rv: item.RV}, item)
	kd.items[k] = item
	change := Added
	if prev != nil {
		change = Modified
	}
	kd.past.add(Event{Type: change, Item: item, Prev: prev}, time.Now())
	return item, nil
}

// Delete removes prev. last is the object's final state for watchers (nil: prev's); it belongs to the store afterwards.
// Errors: as Put.
func (s *Store) Delete(r *Resource, prev *Item, last Object) (*Item, error) {
	if last == nil {
		last = prev.Clone()
	}
	k := key{prev.Object.GetNamespace(), prev.Object.GetName()}
	s.mu.Lock()
	defer s.mu.Unlock()
	kd := &s.kinds[r.index]
	if err := kd.expect(r, k, prev); err != nil {
		return nil, err
	}
	item := newItem(r, last, s.next())
	s.record(record{op: opDelete, resource: r, namespace: k.namespace, name: k.name, rv: item.RV}, nil)
	delete(kd.items, k)
	kd.past.add(Event{Type: Deleted, Item: item, Prev: prev}, time.Now())
	return item, nil
}

func (s *Store) check(r *Resource, k key, prev *Item) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kinds[r.index].expect(r, k, prev)
}

func (kd *kind) expect(r *Resource, k key, prev *Item) error {
	now := kd.items[k]
	switch {
	case now == prev:
		return nil
	case prev == nil:
		return fault.New(fault.Exists, "%s %q already exists", r, k.name)
	case now == nil:
		return fault.New(fault.NotFound, "%s %q not found", r, k.name)
	}
	return fault.New(fault.Busy, "%s %q has changed since version %d", r, k.name, prev.RV)
}

// next hands out a version. Versions are promised to the log in blocks, so that none is ever used twice, not even those
// of objects that are not recorded.
func (s *Store) next() uint64 {
	s.rv++
	if s.log != nil && s.rv >= s.log.ceiling {
		s.say(s.log.reserve(s.rv + versionBlock))
	}
	return s.rv
}

func (s *Store) record(rec record, item *Item) {
	if s.log == nil || !rec.resource.Durable {
		return
	}
	if item != nil {
		rec.object = item.Proto()
	}
	s.say(s.log.append(rec))
}

// say reports once that the log fails and once that it works again. The node runs on: a full disk must not stop pods
// from being seen and ended. The next compaction writes all that is missing.
func (s *Store) say(err error) {
	switch {
	case err != nil && !s.logBad:
		slog.Error("objects are kept in memory only: their log cannot be written (free space or make the folder writable)", "log", s.log.path, "err", err)
	case err == nil && s.logBad:
		slog.Info("objects are recorded again", "log", s.log.path)
	}
	s.logBad = err != nil
}

const houseKeeping = 30 * time.Second

// Run keeps the log and the memory of changes small until ctx ends.
func (s *Store) Run(ctx context.Context) {
	tick := time.NewTicker(houseKeeping)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.forget(now)
			s.expire(now)
			if err := s.Compact(false); err != nil && !errors.Is(err, errClosed) {
				slog.Warn("log of objects is not compacted, trying again later", "err", err)
			}
		}
	}
}

func (s *Store) forget(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.kinds {
		s.kinds[i].past.trim(now)
	}
}

// expire removes what its kind does not keep for ever.
func (s *Store) expire(now time.Time) {
	for _, r := range All {
		if r.Keep == (Bound{}) {
			continue
		}
		items, _ := s.List(r, "")
		slices.SortFunc(items, func(a, b *Item) int { return a.stored.Compare(b.stored) })
		for i, item := range items {
			if len(items)-i <= r.Keep.Most && now.Sub(item.stored) <= r.Keep.Age {
				break
			}
			_, _ = s.Delete(r, item, nil) // changed or gone meanwhile: both are as good
		}
	}
}

// Compact rewrites the log with the present objects alone, if it has grown much beyond them or force is set.
// The rewritten log is synced; writers are held up only while the objects are encoded.
func (s *Store) Compact(force bool) error {
	s.mu.Lock()
	if s.log == nil {
		s.mu.Unlock()
		return errClosed
	}
	if s.log.compacting || !force && !s.logBad && !s.log.grown() {
		s.mu.Unlock()
		return nil
	}
	log := s.log
	image := log.begin(s.rv + versionBlock)
	for i, r := range All {
		if !r.Durable {
			continue
		}
		for k, item := range s.kinds[i].items {
			image = appendRecord(image, record{op: opPut, resource: r, namespace: k.namespace, name: k.name, rv: item.RV, object: item.Proto()})
		}
	}
	s.mu.Unlock()

	err := log.write(image)

	s.mu.Lock()
	defer s.mu.Unlock()
	if err = log.finish(err); err == nil {
		s.say(nil)
	}
	return err
}
