package image

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"worknode/fault"
)

func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	s.Close()
	n, err := Open(s.root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func TestImagesOutliveTheProcess(t *testing.T) {
	s := open(t)
	im := load(t, s, dockerTar(t, "a:1", tarOf(t, file{name: "a"})))
	if err := s.Tag("a:1", "b:2"); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	im.Tags = []string{"docker.io/library/a:1", "docker.io/library/b:2"}
	if diff := cmp.Diff([]Image{im}, s.List()); diff != "" {
		t.Fatal(diff)
	}
	if err := s.Tag("nothing:1", "c:1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("got %v", err)
	}
	if err := s.Tag("a:1", "NOT A NAME"); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
}

func TestOneProcessOwnsTheStore(t *testing.T) {
	s := open(t)
	if _, err := Open(s.root); !fault.Is(err, fault.Busy) {
		t.Fatalf("want Busy, got %v", err)
	}
}

func TestANewTagLeavesTheOldImage(t *testing.T) {
	s := open(t)
	one := load(t, s, dockerTar(t, "a:1", tarOf(t, file{name: "a"})))
	two := load(t, s, dockerTar(t, "a:1", tarOf(t, file{name: "b"})))
	if got, _ := s.Get("a:1"); got.ID != two.ID {
		t.Errorf("the tag stayed with %s", got.ID)
	}
	if old, ok := s.Get(one.ID); !ok || len(old.Tags) != 0 {
		t.Errorf("old image: %v, %v", ok, old.Tags)
	}
	if !slices.Equal(one.Tags, []string{"docker.io/library/a:1"}) {
		t.Error("a snapshot changed under its owner")
	}
}

func TestRemovedImageStaysForItsContainers(t *testing.T) {
	s := open(t)
	base := tarOf(t, file{name: "base"})
	a := load(t, s, dockerTar(t, "a:1", base, tarOf(t, file{name: "a"})))
	b := load(t, s, dockerTar(t, "b:1", base))
	s.Use(a.ID)
	s.Use(a.ID)
	if err := s.Tag("a:1", "other.example/a:1"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Remove("a:1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := s.Get("other.example/a:1"); ok || len(s.List()) != 1 {
		t.Error("a removed image is still shown")
	}
	if n := len(onDisk(t, s.Base())); n != 2 {
		t.Fatalf("%d layers, the container's are gone", n)
	}
	// A restart forgets the counts; the layers must wait for the owner to repeat them.
	s = reopen(t, s)
	s.Use(a.ID)
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	if n := len(onDisk(t, s.Base())); n != 2 {
		t.Fatalf("%d layers after a restart, the container's are gone", n)
	}
	s.Release(a.ID)
	if got := onDisk(t, s.Base()); !slices.Equal(got, b.Layers) {
		t.Errorf("on disk %v, want %v", got, b.Layers)
	}
	if err := s.Remove(b.ID); err != nil {
		t.Fatal(err)
	}
	if left := append(onDisk(t, s.Base()), onDisk(t, s.staging())...); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAnImageRemovedAndImportedAgainIsBack(t *testing.T) {
	s := open(t)
	data := dockerTar(t, "a:1", tarOf(t, file{name: "a"}))
	im := load(t, s, data)
	s.Use(im.ID)
	if err := s.Remove("a:1"); err != nil {
		t.Fatal(err)
	}
	load(t, s, data)
	s.Release(im.ID)
	if got, ok := s.Get("a:1"); !ok || len(onDisk(t, s.Base())) != 1 {
		t.Errorf("image %v, layers %v", got, onDisk(t, s.Base()))
	}
}

// What a crash can leave: a half layer in staging, a whole one without its image, a table that names a layer that is
// gone or that a power cut may have torn.
func TestOpenClearsWhatACrashLeft(t *testing.T) {
	s := open(t)
	data := dockerTar(t, "good:1", tarOf(t, file{name: "g"}))
	good := load(t, s, data)
	gone := load(t, s, dockerTar(t, "gone:1", tarOf(t, file{name: "x"})))
	torn := load(t, s, dockerTar(t, "torn:1", tarOf(t, file{name: "y"})))
	s.Close()
	edit(t, s, func(tb *table) {
		tb.Layers[good.Layers[0]].Unsynced = s.boot
		tb.Layers[torn.Layers[0]].Unsynced = "the boot before"
		tb.Files["/images/torn.tar"] = tarFile{Images: []string{torn.ID}}
		tb.Files["/images/good.tar"] = tarFile{Images: []string{good.ID}}
	})
	if err := os.RemoveAll(filepath.Join(s.Base(), gone.Layers[0])); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"staging/layer-1/etc", "l/0123456789/etc"} {
		if err := os.MkdirAll(filepath.Join(s.root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s = reopen(t, s)
	if got := onDisk(t, s.Base()); !slices.Equal(got, good.Layers) || len(onDisk(t, s.staging())) != 0 {
		t.Errorf("layers %v, staging %v", got, onDisk(t, s.staging()))
	}
	if list := s.List(); len(list) != 1 || list[0].ID != good.ID {
		t.Errorf("images %v", list)
	}
	if s.t.Files["/images/torn.tar"].Images != nil || s.t.Files["/images/good.tar"].Images == nil {
		t.Errorf("files %v: the torn image's tar must be read again, the other not", s.t.Files)
	}
}

func edit(t *testing.T, s *Store, fn func(*table)) {
	t.Helper()
	data, err := os.ReadFile(s.tablePath())
	if err != nil {
		t.Fatal(err)
	}
	var tb table
	if err := json.Unmarshal(data, &tb); err != nil {
		t.Fatal(err)
	}
	fn(&tb)
	if err := os.WriteFile(s.tablePath(), marshal(t, tb), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedTableCostsNoRunningContainer(t *testing.T) {
	s := open(t)
	data := dockerTar(t, "a:1", tarOf(t, file{name: "a"}))
	old := load(t, s, data)
	s.Close()
	if err := os.WriteFile(s.tablePath(), []byte(`{"Version":1,"Images`), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second start must still know
		s = reopen(t, s)
		if len(s.List()) != 0 {
			t.Fatal("images out of nowhere")
		}
		if got := onDisk(t, s.Base()); !slices.Equal(got, old.Layers) {
			t.Fatalf("layers %v: a container may stand on %v", got, old.Layers)
		}
	}
	again := load(t, s, data)
	if again.ID != old.ID || again.Layers[0] == old.Layers[0] {
		t.Errorf("%v became %v: a directory of unknown content was trusted", old.Layers, again.Layers)
	}
	s.Close()
	edit(t, s, func(tb *table) {
		for name := range tb.Orphans {
			tb.Orphans[name] = "the boot before"
		}
	})
	s = reopen(t, s)
	if got := onDisk(t, s.Base()); !slices.Equal(got, again.Layers) {
		t.Errorf("layers %v after a reboot, want %v", got, again.Layers)
	}
}

func TestCancelledImportLeavesNothing(t *testing.T) {
	s := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Import(ctx, bytes.NewReader(dockerTar(t, "a:1", tarOf(t, file{name: "a"}))), "x.tar")
	if err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Fatalf("got %v", err)
	}
	if left := append(onDisk(t, s.Base()), onDisk(t, s.staging())...); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
