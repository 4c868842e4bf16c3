// Package logs keeps the log files of containers small and findable. The runtime writes them, kubelet/api/crilog reads
// them; here they are rotated, compressed, linked under /var/log/containers and removed.
package logs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Log is the log of one running container.
type Log struct {
	ID   string // the runtime's
	Path string // where the runtime writes
}

// Config says when a log is rotated. Zero values mean the defaults of KubeletConfiguration.
type Config struct {
	MaxSize  int64         // bytes; containerLogMaxSize, 10 MiB
	MaxFiles int           // including the one written to; containerLogMaxFiles, 5, at least 2
	Every    time.Duration // containerLogMonitorInterval, 10 s
	// Running lists the logs of running containers.
	Running func() []Log
	// Reopen makes the runtime open its log path anew (CRI ReopenContainerLog).
	Reopen func(ctx context.Context, id string) error
}

const reopenWithin = 10 * time.Second

// Rotator rotates logs that have grown too large. Make it with New.
type Rotator struct {
	Config
	failing map[string]bool // container ids whose trouble was logged
}

// New returns a Rotator; Run makes it work.
func New(c Config) *Rotator {
	c.MaxSize = cmp.Or(c.MaxSize, 10<<20)
	c.MaxFiles = max(cmp.Or(c.MaxFiles, 5), 2)
	c.Every = cmp.Or(c.Every, 10*time.Second)
	return &Rotator{Config: c, failing: map[string]bool{}}
}

// Run looks at every running container's log each Config.Every, which costs one stat a container, until ctx ends.
func (r *Rotator) Run(ctx context.Context) {
	tick := time.NewTicker(r.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.Scan(ctx)
		}
	}
}

// Scan looks at all logs once. One at a time: compressing must not take the pods' CPUs.
func (r *Rotator) Scan(ctx context.Context) {
	alive := map[string]bool{}
	for _, l := range r.Running() {
		if ctx.Err() != nil {
			return
		}
		alive[l.ID] = true
		err := r.look(ctx, l)
		if err != nil && !r.failing[l.ID] {
			slog.Warn("container log is not rotated, retrying", "id", l.ID, "err", err)
		}
		r.failing[l.ID] = err != nil
	}
	for id, bad := range r.failing {
		if !alive[id] || !bad {
			delete(r.failing, id)
		}
	}
}

func (r *Rotator) look(ctx context.Context, l Log) error {
	st, err := os.Stat(l.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// We died between rename and reopen: the runtime still writes to the renamed file.
		if _, err := os.Stat(filepath.Dir(l.Path)); err != nil {
			return err
		}
		return r.reopen(ctx, l)
	case err != nil:
		return err
	case st.Size() < r.MaxSize:
		return nil
	}
	return r.rotate(ctx, l)
}

// rotate puts the log aside as path.TIME and has the runtime begin a new one. What was put aside by then is
// compressed, as path.TIME.gz; the newest stays as it is, since readers may be in it.
// Crash: at any point the next look finishes or repeats; no line is lost.
func (r *Rotator) rotate(ctx context.Context, l Log) error {
	old, err := tidy(l.Path)
	if err != nil {
		return err
	}
	for len(old) > r.MaxFiles-2 { // the one written to and the one we make now
		if err := remove(old[0]); err != nil {
			return err
		}
		old = old[1:]
	}
	for _, name := range old {
		if !strings.HasSuffix(name, gzSuffix) {
			if err := squeeze(ctx, name); err != nil {
				return fmt.Errorf("compress %s: %w", name, err)
			}
		}
	}
	aside := l.Path + "." + time.Now().Format("20060102-150405")
	if _, err := os.Lstat(aside); err == nil {
		return nil // rotated within this second; the next scan will do
	}
	if err := os.Rename(l.Path, aside); err != nil {
		return err
	}
	if err := r.reopen(ctx, l); err != nil {
		// The runtime still writes to the file; give it its name back unless a new one is there after all.
		if _, miss := os.Lstat(l.Path); errors.Is(miss, fs.ErrNotExist) {
			return errors.Join(err, os.Rename(aside, l.Path))
		}
		return err
	}
	return nil
}

func (r *Rotator) reopen(ctx context.Context, l Log) error {
	ctx, cancel := context.WithTimeout(ctx, reopenWithin)
	defer cancel()
	if err := r.Reopen(ctx, l.ID); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", l.ID, err)
	}
	return nil
}

// tidy removes what a crash left half done and returns the rotated files of a log, oldest first.
func tidy(path string) ([]string, error) {
	names, err := rotated(path)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range names {
		var err error
		switch {
		case strings.HasSuffix(name, tmpSuffix): // a compression that did not end
			err = remove(name)
		case slices.Contains(names, name+gzSuffix): // one that did, but its source was left
			err = remove(name)
		default:
			out = append(out, name)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// rotated lists path.* sorted by name, which is by time.
func rotated(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path)) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(path)+".") {
			out = append(out, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	return out, nil
}

func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Remove deletes a container's log and all that was rotated from it. Repeat: safe.
func Remove(path string) error {
	names, err := rotated(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range append(names, path) {
		errs = append(errs, remove(name))
	}
	return errors.Join(errs...)
}
