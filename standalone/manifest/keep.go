// Package manifest keeps the objects that a folder's files declare applied: as files appear, change and go, and when
// somebody deletes what they declare. What a manifest does not name is nobody's business here: fields that users set by
// other means stay (server-side apply does the merging). A bad document harms no other.
package manifest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"worknode/standalone/api"
	"worknode/standalone/store"
	"worknode/strict"
)

const (
	// SourceAnnotation marks an object as declared by a file and tells which.
	SourceAnnotation = "worknode.dev/source"

	manager = "worknode-manifests"
	settle  = 30 * time.Millisecond  // editors write in several steps
	young   = 250 * time.Millisecond // a file changed so lately may be half written: nothing is deleted for what it lacks
	rescan  = time.Minute            // for file systems that report no changes
)

type key struct {
	resource *store.Resource
	name     types.NamespacedName
}

// Keeper keeps one folder applied.
type Keeper struct {
	dir     string
	server  *api.Server
	objects *store.Store
	applied map[key]document // as last applied with success
	told    map[string]bool  // problems that were logged and still are there

	mu       sync.Mutex
	problems []Problem // guarded by mu
}

// New returns a keeper for the manifests below dir.
func New(dir string, server *api.Server, objects *store.Store) *Keeper {
	return &Keeper{dir: dir, server: server, objects: objects, applied: map[key]document{}, told: map[string]bool{}}
}

// Problems returns what is wrong with the folder now.
func (k *Keeper) Problems() []Problem {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.problems)
}

// Run applies the folder and keeps it applied until ctx ends. The first pass is done when it calls first.
func (k *Keeper) Run(ctx context.Context, first func()) {
	changes, stop := k.watch()
	defer stop()
	deleted, stopDeleted := k.deletions(ctx)
	defer stopDeleted()
	var quiet <-chan time.Time
	if again := k.pass(); again > 0 {
		quiet = time.After(again)
	}
	first()
	tick := time.NewTicker(rescan)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changes:
			quiet = time.After(settle)
			continue
		case <-deleted:
		case <-quiet:
			quiet = nil
		case <-tick.C:
		}
		if again := k.pass(); again > 0 {
			quiet = time.After(again)
		}
	}
}

// watch reports that something below the folder changed. Without inotify the rescan alone finds it, later.
func (k *Keeper) watch() (<-chan struct{}, func()) {
	changes := make(chan struct{}, 1)
	w, err := fsnotify.NewWatcher()
	if err != nil {
		slog.Warn("manifests: changes are found by rescanning only (raise fs.inotify.max_user_instances)", "every", rescan, "err", err)
		return changes, func() {}
	}
	for _, d := range folders(k.dir) {
		_ = w.Add(d) // the second need not exist; if it appears, its appearance is a change, and rescans read it
	}
	go func() { // ends with w
		for {
			select {
			case e, ok := <-w.Events:
				if !ok {
					return
				}
				if e.Has(fsnotify.Create) && e.Name == folders(k.dir)[1] {
					_ = w.Add(e.Name) // rescans find what is not watched
				}
			case _, ok := <-w.Errors:
				if !ok {
					return
				}
			}
			poke(changes)
		}
	}()
	return changes, func() { w.Close() }
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// deletions reports that an object of ours is gone from the store.
func (k *Keeper) deletions(ctx context.Context) (<-chan struct{}, func()) {
	gone := make(chan struct{}, 1)
	ctx, stop := context.WithCancel(ctx)
	for _, r := range store.All {
		if !r.Durable {
			continue // heartbeats and events come and go by themselves
		}
		_, _, cursor := k.objects.ListAndWatch(r, "")
		go func() { // ends with ctx
			defer cursor.Close()
			buf := make([]store.Event, 0, 32)
			for {
				select {
				case <-ctx.Done():
					return
				case <-cursor.Ready():
				}
				events, _, err := cursor.Next(buf[:0])
				if err != nil { // we were slow: look at everything, and go on from now
					cursor.Close()
					_, _, cursor = k.objects.ListAndWatch(r, "")
					poke(gone)
				}
				for _, e := range events {
					if e.Type == store.Deleted && e.Item.Object.GetAnnotations()[SourceAnnotation] != "" {
						poke(gone)
					}
				}
			}
		}()
	}
	return gone, stop
}

// pass makes the objects what the files say now. It returns when to look again at the latest, zero for only after a
// change.
func (k *Keeper) pass() (again time.Duration) {
	docs, problems := readDir(k.dir)
	broken := map[string]bool{} // documents that are there but cannot be read now: what they declared stays
	for _, p := range problems {
		broken[fmt.Sprintf("%s#%d", p.File, p.Document)] = true
	}
	want := map[key]document{}
	for _, d := range docs {
		at := keyOf(d)
		if other, twice := want[at]; twice {
			problems = append(problems, Problem{d.at.file, d.at.n, d.at.line, fmt.Errorf("%s %s is declared in %s already", d.resource.Kind, at.name, other.source)})
			continue
		}
		want[at] = d
	}
	for _, r := range store.All { // what others refer to comes first
		for _, d := range docs {
			if d.resource != r || want[keyOf(d)].source != d.source {
				continue
			}
			if err := k.apply(d); err != nil {
				problems = append(problems, Problem{d.at.file, d.at.n, d.line(err), err})
			}
		}
	}
	if !unread(problems) && k.prune(want, broken) {
		again = young
	}
	k.tell(problems)
	return again
}

// unread says that a file could not be read, so that what it declares is unknown: then nothing is deleted.
func unread(problems []Problem) bool {
	return slices.ContainsFunc(problems, func(p Problem) bool { return p.Document == 0 })
}

func keyOf(d document) key {
	return key{d.resource, types.NamespacedName{Namespace: d.ns, Name: d.name}}
}

// apply makes one object what its document says, unless it was made so before and is there.
func (k *Keeper) apply(d document) error {
	at := keyOf(d)
	was, known := k.applied[at]
	item := k.objects.Get(d.resource, d.ns, d.name)
	if item != nil && item.Object.GetDeletionTimestamp() != nil {
		return nil // it is ending; when it is gone we are called again
	}
	if known && was.text == d.text && was.source == d.source && item != nil {
		return nil
	}
	_, _, err := k.server.Apply(d.resource, d.ns, d.name, d.declared(d.name), true, api.Write{Manager: manager})
	if apierrors.IsInvalid(err) && item != nil && d.resource == store.Pods {
		// A pod's spec cannot change. If the new one is good by itself, the pod makes room for it.
		if _, _, fresh := k.server.Apply(d.resource, d.ns, d.name+"-0", d.declared(d.name+"-0"), true, api.Write{Manager: manager, DryRun: true}); fresh == nil {
			slog.Info("a pod's manifest changed: ending the pod, a new one follows", "pod", at.name.String(), "source", d.source)
			_, _, err = k.server.Delete(d.resource, d.ns, d.name, &metav1.DeleteOptions{})
			return err
		}
	}
	if err != nil {
		return err
	}
	k.applied[at] = d
	return nil
}

// declared is the document's configuration, marked with its source, under a name.
func (d document) declared(name string) map[string]any {
	config := deepCopy(d.config).(map[string]any)
	meta, _ := config["metadata"].(map[string]any)
	meta["name"] = name
	marks, _ := meta["annotations"].(map[string]any)
	if marks == nil {
		marks = map[string]any{}
	}
	marks[SourceAnnotation] = d.source
	meta["annotations"] = marks
	return config
}

func deepCopy(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = deepCopy(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = deepCopy(e)
		}
		return out
	}
	return v
}

// line is where the field stands that the API's error blames.
func (d document) line(err error) int {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Details != nil {
		for _, cause := range status.Status().Details.Causes {
			if l := strict.LinesOf([]byte(d.text)).Find(cause.Field); l > 0 {
				return d.at.line + l - 1
			}
		}
	}
	return d.at.line
}

// prune deletes the objects whose declaration is gone, those of an earlier supervisor's time too. An object whose
// document is broken for now keeps its old state; one whose file is being written waits, and prune says so.
func (k *Keeper) prune(want map[key]document, broken map[string]bool) (waits bool) {
	for _, r := range slices.Backward(store.All) {
		items, _ := k.objects.List(r, "")
		for _, item := range items {
			o := item.Object
			at := key{r, types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}}
			source := o.GetAnnotations()[SourceAnnotation]
			if _, declared := want[at]; source == "" || declared || broken[source] || o.GetDeletionTimestamp() != nil {
				continue
			}
			if k.beingWritten(source) {
				waits = true
				continue
			}
			if ns, is := o.(*v1.Namespace); is && ns.Status.Phase == v1.NamespaceTerminating {
				continue
			}
			if _, _, err := k.server.Delete(r, o.GetNamespace(), o.GetName(), &metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				slog.Error("an object whose manifest is gone stays", "kind", r.Kind, "name", at.name.String(), "err", err)
			}
			delete(k.applied, at)
		}
	}
	return waits
}

// beingWritten says that the file of a source is there and has changed a moment ago.
func (k *Keeper) beingWritten(source string) bool {
	file, _, _ := strings.Cut(source, "#")
	st, err := os.Stat(filepath.Join(k.dir, file))
	return err == nil && time.Since(st.ModTime()) < young
}

// tell logs each problem once for as long as it lasts.
func (k *Keeper) tell(problems []Problem) {
	now := map[string]bool{}
	for _, p := range problems {
		text := p.Error()
		now[text] = true
		if !k.told[text] {
			slog.Error("manifest not applied: " + text)
		}
	}
	if len(problems) == 0 && len(k.told) > 0 {
		slog.Info("all manifests are applied")
	}
	k.told = maps.Clone(now)
	k.mu.Lock()
	k.problems = problems
	k.mu.Unlock()
}
