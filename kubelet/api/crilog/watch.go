package crilog

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/fsnotify/fsnotify"
	"worknode/fault"
	"worknode/task"
)

// Watcher tells followers that something changed in the directories of their logs. All followers share one inotify
// instance, which exists only while there is a follower: the kernel grants few of them per user (128 by default).
type Watcher struct {
	tasks *task.Group

	mu   sync.Mutex
	fs   *fsnotify.Watcher
	dirs map[string]map[chan struct{}]bool
}

// NewWatcher returns a Watcher whose goroutine belongs to tasks.
func NewWatcher(tasks *task.Group) *Watcher { return &Watcher{tasks: tasks} }

// Watch returns a channel that holds a token after any change in the directory of path. stop must be called.
// Errors: Exhausted if the kernel grants no inotify instance or watch.
func (w *Watcher) Watch(path string) (changed <-chan struct{}, stop func(), err error) {
	real, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return nil, nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fs == nil {
		if w.fs, err = fsnotify.NewWatcher(); err != nil {
			w.fs = nil
			return nil, nil, exhausted(path, err)
		}
		w.dirs = map[string]map[chan struct{}]bool{}
		from := w.fs // closed by the last stop, which ends the task
		w.tasks.Go("log watch", func(context.Context) { w.pump(from) })
	}
	if w.dirs[real] == nil {
		if err := w.fs.Add(real); err != nil {
			w.leave(real, nil)
			return nil, nil, exhausted(path, err)
		}
		w.dirs[real] = map[chan struct{}]bool{}
	}
	ch := make(chan struct{}, 1)
	w.dirs[real][ch] = true
	return ch, sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.leave(real, ch)
	}), nil
}

// leave needs mu.
func (w *Watcher) leave(dir string, ch chan struct{}) {
	if delete(w.dirs[dir], ch); len(w.dirs[dir]) == 0 {
		delete(w.dirs, dir)
		_ = w.fs.Remove(dir) // gone already if the pod's logs were removed
	}
	if len(w.dirs) == 0 {
		_ = w.fs.Close()
		w.fs = nil
	}
}

func (w *Watcher) pump(from *fsnotify.Watcher) {
	for {
		select {
		case ev, ok := <-from.Events:
			if !ok {
				return
			}
			w.tell(from, filepath.Dir(ev.Name))
		case _, ok := <-from.Errors:
			if !ok {
				return
			}
			w.tell(from, "") // events were lost, so everyone looks
		}
	}
}

func (w *Watcher) tell(from *fsnotify.Watcher, dir string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fs != from {
		return
	}
	if dir != "" {
		wake(w.dirs[dir])
		return
	}
	for _, followers := range w.dirs {
		wake(followers)
	}
}

func wake(followers map[chan struct{}]bool) {
	for ch := range followers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func exhausted(path string, err error) error {
	return fault.Hint(fault.As(fault.Exhausted, fmt.Errorf("log %s: inotify: %w", path, err)),
		"raise the sysctls fs.inotify.max_user_instances and max_user_watches, or end other followers")
}
