package image

import (
	"context"
	"sync"
	"sync/atomic"
)

// Progress tells how far a pull is. The zero value is ready; one Fetch fills it, anybody may look.
type Progress struct {
	mu     sync.Mutex
	layers []*LayerProgress
}

// Where a layer of a pull stands.
const (
	Waiting  = "waiting"
	Pulling  = "pulling"
	Unpacked = "unpacked"
	Here     = "here" // was on this node before
)

// LayerProgress is one layer of a pull.
type LayerProgress struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"` // bytes as the registry has them
	Done   int64  `json:"done"` // bytes that came; a layer that had to be asked for anew begins at zero
	State  string `json:"state"`

	done  atomic.Int64
	state atomic.Pointer[string]
}

type progressKey struct{}

// Watched returns a context in which Fetch reports to p.
func Watched(ctx context.Context, p *Progress) context.Context {
	return context.WithValue(ctx, progressKey{}, p)
}

// Layers returns a snapshot; empty before the manifest is known.
func (p *Progress) Layers() []LayerProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]LayerProgress, len(p.layers))
	for i, l := range p.layers {
		out[i].Digest, out[i].Size, out[i].Done, out[i].State = l.Digest, l.Size, l.done.Load(), Waiting
		if s := l.state.Load(); s != nil {
			out[i].State = *s
		}
	}
	return out
}

// expect prepares an entry for each layer.
func expect(ctx context.Context, layers []blob) {
	p, ok := ctx.Value(progressKey{}).(*Progress)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.layers = nil
	for i := range layers {
		l := &LayerProgress{Digest: layers[i].digest.String(), Size: layers[i].size}
		layers[i].progress = l
		p.layers = append(p.layers, l)
	}
}

// is, came and again may be told to nobody (nil).
func (l *LayerProgress) is(state string) {
	if l != nil {
		l.state.Store(&state)
	}
}

func (l *LayerProgress) came(n int) {
	if l != nil {
		l.done.Add(int64(n))
	}
}

func (l *LayerProgress) again() {
	if l != nil {
		l.done.Store(0)
	}
}
