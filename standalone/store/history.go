package store

import (
	"time"

	"worknode/fault"
)

// Type is what a change did.
type Type int

const (
	Added Type = iota
	Modified
	Deleted
)

func (t Type) String() string { return [...]string{"ADDED", "MODIFIED", "DELETED"}[t] }

// Event is one change. Prev is what the object was before, nil if it is new.
type Event struct {
	Type Type
	Item *Item
	Prev *Item
}

// How much of the past is kept for watchers that fall behind or come back, per kind. Bytes are of protobuf; an object
// in memory is about four times as large.
const (
	pastEvents = 1024
	pastBytes  = 1 << 20
	pastAge    = 2 * time.Minute
)

type dated struct {
	Event
	at   time.Time
	size int
}

// history is the recent past of one kind: a queue that all watchers read, each from its own place. A watcher costs no
// buffer, and one that is too slow finds its place gone.
type history struct {
	events  []dated // oldest first
	first   uint64  // sequence number of events[0]
	bytes   int
	floor   uint64 // version of the newest change that is forgotten
	wakeups map[*Cursor]struct{}
}

func newHistory() history { return history{wakeups: map[*Cursor]struct{}{}} }

func (h *history) add(e Event, now time.Time) {
	size := 256
	if p := e.Item.proto.Load(); p != nil {
		size += len(*p)
	}
	h.events = append(h.events, dated{e, now, size})
	h.bytes += size
	for len(h.events) > pastEvents || h.bytes > pastBytes {
		h.drop()
	}
	for c := range h.wakeups {
		select {
		case c.ready <- struct{}{}:
		default:
		}
	}
}

func (h *history) drop() {
	h.floor = h.events[0].Item.RV
	h.bytes -= h.events[0].size
	h.events[0] = dated{}
	h.events = h.events[1:]
	h.first++
}

// trim forgets what is old, so that a quiet node holds one version of each object.
func (h *history) trim(now time.Time) {
	for len(h.events) > 0 && now.Sub(h.events[0].at) > pastAge {
		h.drop()
	}
	if len(h.events) == 0 {
		h.events = nil
	}
}

// Cursor reads the changes of one kind in order.
type Cursor struct {
	s     *Store
	r     *Resource
	next  uint64 // sequence number of the next event
	ready chan struct{}
}

// Watch returns a cursor behind version rv.
// Errors: NotFound (with text for the API's 410) if changes after rv are forgotten or rv was never handed out.
func (s *Store) Watch(r *Resource, rv uint64) (*Cursor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.kinds[r.index].past
	if rv < h.floor || rv > s.rv {
		return nil, expired(rv, s.rv)
	}
	// Binary search would be shorter to run, but a resumed watch is rare and its place is near the end.
	at := len(h.events)
	for at > 0 && h.events[at-1].Item.RV > rv {
		at--
	}
	return s.cursorLocked(r, h.first+uint64(at)), nil
}

// ListAndWatch returns the objects and a cursor that starts exactly behind them.
func (s *Store) ListAndWatch(r *Resource, namespace string) ([]*Item, uint64, *Cursor) {
	s.mu.Lock()
	h := &s.kinds[r.index].past
	items, rv := s.listLocked(r, namespace), s.rv
	c := s.cursorLocked(r, h.first+uint64(len(h.events)))
	s.mu.Unlock()
	sortItems(items)
	return items, rv, c
}

func (s *Store) cursorLocked(r *Resource, next uint64) *Cursor {
	h := &s.kinds[r.index].past
	c := &Cursor{s: s, r: r, next: next, ready: make(chan struct{}, 1)}
	if next < h.first+uint64(len(h.events)) {
		c.ready <- struct{}{}
	}
	h.wakeups[c] = struct{}{}
	return c
}

// Ready receives when there may be something to read.
func (c *Cursor) Ready() <-chan struct{} { return c.ready }

// Next appends what happened since the last call to buf, at most as much as its capacity has room for, and returns it
// with the version up to which the reader now knows everything. It does not wait.
// Errors: NotFound if the reader was so slow that changes are forgotten; it must list again.
func (c *Cursor) Next(buf []Event) ([]Event, uint64, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	h := &c.s.kinds[c.r.index].past
	if c.next < h.first {
		return buf, 0, expired(h.floor, c.s.rv)
	}
	for at := c.next - h.first; at < uint64(len(h.events)); at++ {
		if len(buf) == cap(buf) {
			select {
			case c.ready <- struct{}{}:
			default:
			}
			return buf, buf[len(buf)-1].Item.RV, nil
		}
		buf = append(buf, h.events[at].Event)
		c.next++
	}
	return buf, c.s.rv, nil
}

// Close ends the cursor.
func (c *Cursor) Close() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	delete(c.s.kinds[c.r.index].past.wakeups, c)
}

func expired(rv, now uint64) error {
	return fault.New(fault.NotFound, "too old resource version: %d (%d)", rv, now)
}
