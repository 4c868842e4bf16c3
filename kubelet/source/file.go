package source

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	v1 "k8s.io/api/core/v1"

	"worknode/fault"
)

// largest is how much of one document is read: more is no pod.
const largest = 4 << 20

// Folder runs the pods of a folder, or of one file: every file in it that does not begin with a dot holds one Pod. It is
// read again when something in it changes, and every period for file systems that do not tell. It ends with ctx.
//
// A file that cannot be read or is wrong keeps what it last said, because a slip in an editor must not end a control
// plane; only a file that is gone ends its pods.
func Folder(ctx context.Context, dir, node string, period time.Duration, pods Pods) {
	f := &folder{dir: dir, node: node, set: set{pods: pods}, last: map[string]document{}, said: map[string]string{}}
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		slog.Warn("changes of static pods are seen late", "dir", dir, "every", period, "err", err)
	} else {
		defer watch.Close()
	}
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		if watch != nil {
			_ = watch.Add(dir) // again each time: the folder may be new
		}
		f.read()
		if !wait(ctx, watch, tick.C) {
			return
		}
	}
}

// wait returns at the next change or tick; false when ctx ended.
func wait(ctx context.Context, watch *fsnotify.Watcher, tick <-chan time.Time) bool {
	var events chan fsnotify.Event
	var errs chan error
	if watch != nil {
		events, errs = watch.Events, watch.Errors
	}
	select {
	case <-ctx.Done():
		return false
	case <-tick:
	case <-errs: // an overflow: read everything
	case <-events:
		for { // one look for a burst
			select {
			case <-events:
			case <-time.After(5 * time.Millisecond):
				return true
			}
		}
	}
	return true
}

type folder struct {
	dir, node string
	set       set
	last      map[string]document // by file
	said      map[string]string   // the last error of a file, to tell it once
}

type document struct {
	stamp time.Time
	size  int64
	pods  []*v1.Pod
}

// read looks at all files and tells what changed.
func (f *folder) read() {
	names, err := f.files()
	if err != nil {
		f.complain(f.dir, err)
		if errors.Is(err, fs.ErrNotExist) { // nobody has made it yet, or it was removed: no pods
			f.last = map[string]document{}
			f.set.tell(nil, time.Now())
		}
		return
	}
	delete(f.said, f.dir)
	next, all := map[string]document{}, []*v1.Pod{}
	for _, name := range names {
		doc, err := f.document(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			f.complain(name, err)
			doc = document{pods: f.last[name].pods}
		default:
			delete(f.said, name)
		}
		next[name] = doc
		all = append(all, doc.pods...)
	}
	f.last = next
	for _, key := range f.set.tell(all, time.Now()) {
		f.complain(key, fault.New(fault.Exists, "two files of %s name the pod %s: only the first, by file name, counts", f.dir, key))
	}
}

// files lists what may hold pods, in order.
func (f *folder) files() ([]string, error) {
	st, err := os.Stat(f.dir)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return []string{f.dir}, nil
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !e.IsDir() {
			out = append(out, filepath.Join(f.dir, e.Name()))
		}
	}
	return out, nil
}

// document reads a file, or takes what it said before if it has not changed since.
func (f *folder) document(name string) (document, error) {
	st, err := os.Stat(name) // through links, as ConfigMap volumes have them
	if err != nil {
		return document{}, err
	}
	if !st.Mode().IsRegular() {
		return document{}, fault.New(fault.Invalid, "%s: not a regular file", name)
	}
	if old, ok := f.last[name]; ok && old.size == st.Size() && old.stamp.Equal(st.ModTime()) && time.Since(old.stamp) > time.Second {
		return old, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return document{}, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, largest+1))
	if err != nil {
		return document{}, err
	}
	if len(text) > largest {
		return document{}, fault.New(fault.Invalid, "%s: larger than %d bytes", name, largest)
	}
	pods, err := parse(text, name, "file", f.node)
	return document{stamp: st.ModTime(), size: st.Size(), pods: pods}, err
}

// complain logs an error once, until it changes.
func (f *folder) complain(about string, err error) {
	if f.said[about] != err.Error() {
		f.said[about] = err.Error()
		slog.Error("static pod", "err", err)
	}
}
