package probe

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"worknode/task"
)

// atOnce bounds the attempts under way on the node. Attempts wait for the network or for a process, so the bound
// guards memory and process count, not CPU; due probes beyond it wait in line, oldest first.
const atOnce = 128

// Prober runs every probe of the node. All methods may be called from any goroutine and do not block.
type Prober struct {
	exec   Exec
	report func(Result)
	warn   func(key Key, reason, msg string)
	http   *httpGetter

	wake  chan struct{} // something earlier than the timer, or a free place
	tasks *task.Group   // set by Run

	mu     sync.Mutex
	probes map[Key]*entry
	due    byTime
	active int
}

// entry is one probe's schedule and tally. Guarded by Prober.mu, except target and rule while an attempt reads them:
// those are never written after the entry was made, Set replaces the whole entry.
type entry struct {
	Target
	rule
	tally
	history
	at      time.Time
	index   int  // place in the heap, -1 when outside
	dropped bool // a late attempt's result is thrown away
}

// New returns a Prober. report is called when a verdict changes, warn for each failed attempt that counts
// (reason and message are the event's); both run on the attempt's goroutine and must not block for long.
func New(exec Exec, report func(Result), warn func(key Key, reason, msg string)) *Prober {
	return &Prober{
		exec: exec, report: report, warn: warn, http: newHTTPGetter(),
		wake: make(chan struct{}, 1), probes: map[Key]*entry{},
	}
}

// Set begins a probe, or leaves it alone if it already watches that container at that address.
// Repeat: safe. A new ContainerID starts thresholds and schedule afresh.
func (p *Prober) Set(t Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.probes[t.Key]; old != nil {
		if old.ContainerID == t.ContainerID && old.PodIP == t.PodIP {
			return
		}
		p.drop(old)
	}
	e := &entry{Target: t, rule: ruleOf(t.Probe), index: -1}
	e.verdict = initial(t.Kind, t.Initial)
	p.probes[t.Key] = e
	if settled(t.Kind, e.verdict) {
		return // known from before a restart; kept, so that a repeated Set stays a no-op
	}
	e.at = firstLook(t.Kind, e.rule, t.Initial, t.StartedAt, time.Now())
	p.push(e)
}

// Drop ends all probes of a pod. A verdict already on its way may still arrive; its ContainerID tells.
func (p *Prober) Drop(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, e := range p.probes {
		if k.UID == uid {
			p.drop(e)
		}
	}
}

// DropKey ends one probe. Repeat: safe.
func (p *Prober) DropKey(k Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.probes[k]; e != nil {
		p.drop(e)
	}
}

// Run runs probes until ctx ends and returns when no attempt is left.
func (p *Prober) Run(ctx context.Context) {
	p.tasks = task.New(ctx)
	defer p.tasks.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-p.wake:
		}
		if wait, any := p.startDue(time.Now()); any {
			timer.Reset(wait)
		}
	}
}

// startDue starts what is due and has a place, and says how long until the next one; any is false if only a
// wake can bring work.
func (p *Prober) startDue(now time.Time) (wait time.Duration, any bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.due) > 0 {
		if wait := p.due[0].at.Sub(now); wait > 0 {
			return wait, true
		}
		if p.active == atOnce {
			return 0, false
		}
		e := heap.Pop(&p.due).(*entry)
		p.active++
		p.tasks.Go("probe", func(ctx context.Context) {
			defer p.freePlace()
			p.look(ctx, e)
		})
	}
	return 0, false
}

// look makes one attempt and books what came of it.
func (p *Prober) look(ctx context.Context, e *entry) {
	began := time.Now()
	got := p.attempt(ctx, &e.Target, e.timeout)
	if ctx.Err() != nil {
		return // we stop; that says nothing about the container
	}
	now := time.Now()
	p.mu.Lock()
	e.note(got, now.Sub(began))
	if e.dropped {
		p.mu.Unlock()
		return
	}
	ignored := got.failed() && inRamp(e.Kind, e.rule, e.verdict, e.StartedAt, began)
	changed := false
	if !ignored && got.err == nil { // an attempt that could not be made counts neither way
		changed = e.count(e.rule, got.verdict)
	}
	verdict := e.verdict
	if !settled(e.Kind, verdict) {
		e.at = nextLook(e.Kind, e.rule, verdict, e.Probe.Exec != nil, e.StartedAt, now)
		p.push(e)
	}
	p.mu.Unlock()

	if reason, msg := got.event(e.Kind); reason != "" && !ignored {
		p.warn(e.Key, reason, msg)
	}
	if changed {
		p.report(Result{Key: e.Key, ContainerID: e.ContainerID, Verdict: verdict, Output: got.output})
	}
}

func (p *Prober) freePlace() {
	p.mu.Lock()
	p.active--
	p.mu.Unlock()
	p.poke()
}

func (p *Prober) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// push needs mu.
func (p *Prober) push(e *entry) {
	heap.Push(&p.due, e)
	if e.index == 0 {
		p.poke()
	}
}

// drop needs mu.
func (p *Prober) drop(e *entry) {
	e.dropped = true
	delete(p.probes, e.Key)
	if e.index >= 0 {
		heap.Remove(&p.due, e.index)
	}
}

// byTime is the heap of entries that wait, the earliest first.
type byTime []*entry

func (h byTime) Len() int           { return len(h) }
func (h byTime) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h byTime) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *byTime) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}
func (h *byTime) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}
