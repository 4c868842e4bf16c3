package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/fault"
)

func configMap(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string]string{"v": value}}
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// set stores a value under a name, whatever is there.
func set(t *testing.T, s *Store, name, value string) *Item {
	t.Helper()
	item, err := s.Put(ConfigMaps, configMap(name, value), s.Get(ConfigMaps, "default", name))
	if err != nil {
		t.Fatal(err)
	}
	return item
}

// values prints all ConfigMaps as "name=value …".
func values(s *Store) string {
	items, _ := s.List(ConfigMaps, "")
	var out []string
	for _, i := range items {
		out = append(out, i.Object.GetName()+"="+i.Object.(*corev1.ConfigMap).Data["v"])
	}
	return strings.Join(out, " ")
}

func TestPutRefusesWhatItWasNotMeantFor(t *testing.T) {
	s := open(t, "")
	one := set(t, s, "a", "1")
	if _, err := s.Put(ConfigMaps, configMap("a", "2"), nil); !fault.Is(err, fault.Exists) {
		t.Errorf("create over an object: %v", err)
	}
	two := set(t, s, "a", "2")
	if _, err := s.Put(ConfigMaps, configMap("a", "3"), one); !fault.Is(err, fault.Busy) {
		t.Errorf("update of an old version: %v", err)
	}
	if _, err := s.Delete(ConfigMaps, one, nil); !fault.Is(err, fault.Busy) {
		t.Errorf("delete of an old version: %v", err)
	}
	if _, err := s.Delete(ConfigMaps, two, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(ConfigMaps, configMap("a", "3"), two); !fault.Is(err, fault.NotFound) {
		t.Errorf("update of what is gone: %v", err)
	}
}

func TestAnEqualObjectChangesNothing(t *testing.T) {
	s := open(t, "")
	one := set(t, s, "a", "1")
	c, err := s.Watch(ConfigMaps, s.RV())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if again := set(t, s, "a", "1"); again != one || s.RV() != one.RV {
		t.Errorf("an equal object became version %d after %d", again.RV, one.RV)
	}
	if events, _, err := c.Next(make([]Event, 0, 4)); err != nil || len(events) != 0 {
		t.Errorf("events %v, %v", events, err)
	}
}

func TestObjectsAndVersionsOutliveAKill(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	set(t, s, "a", "1")
	set(t, s, "b", "1")
	set(t, s, "a", "2")
	if _, err := s.Delete(ConfigMaps, s.Get(ConfigMaps, "default", "b"), nil); err != nil {
		t.Fatal(err)
	}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "l"}}
	if _, err := s.Put(Leases, lease, nil); err != nil {
		t.Fatal(err)
	}
	last := s.RV() // nothing is closed: a killed process closes nothing
	again := open(t, dir)
	if got := values(again); got != "a=2" {
		t.Errorf("found %q", got)
	}
	if again.Get(Leases, "x", "l") != nil {
		t.Error("a lease outlived the process")
	}
	if next := set(t, again, "c", "1"); next.RV <= last {
		t.Errorf("version %d was handed out before, up to %d", next.RV, last)
	}
	if _, err := again.Watch(ConfigMaps, last); !fault.Is(err, fault.NotFound) {
		t.Errorf("a watch from the last life: %v", err)
	}
}

// TestALogCutAnywhere: whatever prefix of the log a crash leaves, the store opens with a state that was true once, and
// records on.
func TestALogCutAnywhere(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	truth := map[string]bool{"": true}
	for i := range 12 {
		name := fmt.Sprint(i % 3)
		if i%5 == 4 {
			if item := s.Get(ConfigMaps, "default", name); item != nil {
				if _, err := s.Delete(ConfigMaps, item, nil); err != nil {
					t.Fatal(err)
				}
			}
		} else {
			set(t, s, name, fmt.Sprint(i))
		}
		truth[values(s)] = true
	}
	whole, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		t.Fatal(err)
	}
	cut := t.TempDir()
	for n := range len(whole) + 1 {
		if err := os.WriteFile(filepath.Join(cut, logFile), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, cut)
		if got := values(s); !truth[got] {
			t.Fatalf("cut at %d of %d: %q was never true", n, len(whole), got)
		}
		set(t, s, "after", "1")
		s.Close()
		if got := values(open(t, cut)); !strings.Contains(got, "after=1") {
			t.Fatalf("cut at %d: what was written afterwards is lost: %q", n, got)
		}
	}
}

// TestADamagedByteCostsOneObject flips every byte of the log in turn.
func TestADamagedByteCostsOneObject(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for i := range 4 {
		set(t, s, fmt.Sprint(i), "x")
	}
	whole, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		t.Fatal(err)
	}
	bad := t.TempDir()
	for n := range whole {
		data := bytes.Clone(whole)
		data[n] ^= 0x5A
		if err := os.WriteFile(filepath.Join(bad, logFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, bad)
		items, _ := s.List(ConfigMaps, "")
		if len(items) < 3 {
			t.Fatalf("byte %d cost %d objects", n, 4-len(items))
		}
		s.Close()
	}
}

func TestCompactionKeepsAllAndShrinks(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for i := range 500 {
		set(t, s, fmt.Sprint(i%5), strings.Repeat("x", 100)+fmt.Sprint(i))
	}
	before, want, rv := s.log.size, values(s), s.RV()
	if err := s.Compact(true); err != nil {
		t.Fatal(err)
	}
	set(t, s, "late", "1")
	if s.log.size*10 > before {
		t.Errorf("%d bytes after, %d before", s.log.size, before)
	}
	again := open(t, dir)
	if got := values(again); got != want+" late=1" {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if again.RV() < rv {
		t.Errorf("versions went back: %d after %d", again.RV(), rv)
	}
}

// TestCompactionMeetsWrites: what is written while the new log is made is in it.
func TestCompactionMeetsWrites(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	set(t, s, "a", "1")
	s.mu.Lock()
	log := s.log
	image := log.begin(s.rv + versionBlock)
	s.mu.Unlock()
	set(t, s, "b", "1") // between the two
	if err := log.write(image); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	err := log.finish(nil)
	s.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if got := values(open(t, dir)); got != "b=1" { // "a" was not in this image
		t.Errorf("got %q", got)
	}
}

func TestAFolderThatCannotBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(file, "below")); err == nil || !strings.Contains(err.Error(), "choose a writable --root") {
		t.Errorf("got %v", err)
	}
}

// TestAFullDiskStopsRecordingOnly: the log's file is closed under the store; objects go on in memory, and the next
// compaction records them all.
func TestAFullDiskStopsRecordingOnly(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	set(t, s, "a", "1")
	s.log.f.Close()
	set(t, s, "b", "1")
	if got := values(s); got != "a=1 b=1" || !s.logBad {
		t.Fatalf("got %q, bad %v", got, s.logBad)
	}
	if err := s.Compact(false); err != nil {
		t.Fatal(err)
	}
	if got := values(open(t, dir)); got != "a=1 b=1" || s.logBad {
		t.Errorf("recorded %q, bad %v", got, s.logBad)
	}
}

func TestWatchResumesExactly(t *testing.T) {
	s := open(t, "")
	var rvs []uint64
	for i := range 10 {
		rvs = append(rvs, set(t, s, "a", fmt.Sprint(i)).RV)
	}
	for i, rv := range rvs {
		c, err := s.Watch(ConfigMaps, rv)
		if err != nil {
			t.Fatal(err)
		}
		events, upTo, err := c.Next(make([]Event, 0, 32))
		c.Close()
		if err != nil || len(events) != len(rvs)-1-i || upTo != s.RV() {
			t.Fatalf("from %d: %d events up to %d, %v", rv, len(events), upTo, err)
		}
		for j, e := range events {
			if e.Item.RV != rvs[i+1+j] || e.Type != Modified {
				t.Fatalf("event %d is %v of version %d", j, e.Type, e.Item.RV)
			}
		}
	}
	if _, err := s.Watch(ConfigMaps, s.RV()+1); err == nil {
		t.Error("a version of the future was accepted")
	}
}

func TestASlowWatcherIsToldToListAgain(t *testing.T) {
	s := open(t, "")
	_, _, c := s.ListAndWatch(ConfigMaps, "")
	defer c.Close()
	for i := range pastEvents + 1 {
		set(t, s, "a", fmt.Sprint(i))
	}
	if _, _, err := c.Next(make([]Event, 0, 8)); !fault.Is(err, fault.NotFound) {
		t.Errorf("got %v", err)
	}
}

func TestASmallBufferGetsTheRestNextTime(t *testing.T) {
	s := open(t, "")
	_, _, c := s.ListAndWatch(ConfigMaps, "")
	defer c.Close()
	for i := range 5 {
		set(t, s, fmt.Sprint(i), "x")
	}
	seen := 0
	for {
		select {
		case <-c.Ready():
			events, rv, err := c.Next(make([]Event, 0, 2))
			if err != nil {
				t.Fatal(err)
			}
			seen += len(events)
			if seen < 5 && rv != events[len(events)-1].Item.RV {
				t.Errorf("told to know %d after event %d", rv, events[len(events)-1].Item.RV)
			}
			continue
		default:
		}
		break
	}
	if seen != 5 {
		t.Errorf("saw %d of 5", seen)
	}
}

func TestThePastIsForgottenWhenItIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, "")
		rv := set(t, s, "a", "1").RV
		set(t, s, "a", "2")
		go s.Run(t.Context())
		time.Sleep(pastAge + houseKeeping + time.Second) // in the bubble: no time passes
		synctest.Wait()
		if n := len(s.kinds[ConfigMaps.index].past.events); n != 0 {
			t.Errorf("%d events are held", n)
		}
		if _, err := s.Watch(ConfigMaps, rv); err == nil {
			t.Error("a forgotten version can be resumed from")
		}
		if c, err := s.Watch(ConfigMaps, s.RV()); err != nil {
			t.Errorf("the present version: %v", err)
		} else {
			c.Close()
		}
	})
}

func TestEventsGoByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, "")
		go s.Run(t.Context())
		event := func(name string) {
			if _, err := s.Put(Events, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}, nil); err != nil {
				t.Fatal(err)
			}
		}
		event("old")
		set(t, s, "kept", "1")
		time.Sleep(Events.Keep.Age - houseKeeping)
		for i := range Events.Keep.Most + 10 {
			event(fmt.Sprint(i))
			time.Sleep(time.Microsecond)
		}
		time.Sleep(2 * houseKeeping)
		synctest.Wait()
		items, _ := s.List(Events, "")
		if len(items) != Events.Keep.Most || s.Get(Events, "default", "old") != nil || s.Get(Events, "default", "9") != nil || s.Get(Events, "default", "10") == nil {
			t.Errorf("%d events are kept, not the newest %d", len(items), Events.Keep.Most)
		}
		time.Sleep(2 * Events.Keep.Age)
		synctest.Wait()
		if items, _ := s.List(Events, ""); len(items) != 0 || values(s) != "kept=1" {
			t.Errorf("%d events are left, and %q", len(items), values(s))
		}
	})
}

func TestClosedStoreRunsOnInMemory(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	set(t, s, "a", "1")
	if err := s.Compact(true); !errors.Is(err, errClosed) {
		t.Errorf("got %v", err)
	}
}

// BenchmarkPutToWatcher is the hot path: a pod's status is stored until a watcher holds its encoding.
func BenchmarkPutToWatcher(b *testing.B) {
	s, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}, Spec: corev1.PodSpec{Containers: make([]corev1.Container, 2)}}
	item, err := s.Put(Pods, pod, nil)
	if err != nil {
		b.Fatal(err)
	}
	_, _, c := s.ListAndWatch(Pods, "")
	defer c.Close()
	buf := make([]Event, 0, 4)
	for i := 0; b.Loop(); i++ {
		next := item.Clone().(*corev1.Pod)
		next.Status.Message = fmt.Sprint(i)
		if item, err = s.Put(Pods, next, item); err != nil {
			b.Fatal(err)
		}
		<-c.Ready()
		if buf, _, err = c.Next(buf[:0]); err != nil || len(buf[0].Item.Proto()) == 0 {
			b.Fatal(err)
		}
	}
}
