package image

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// watched runs ImportDir; next returns what it did last, or fails after ten seconds.
func watched(t *testing.T, s *Store, dir string) (next func(what string) tried) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	events, ended := make(chan tried, 100), make(chan error, 1)
	go func() {
		ended <- s.ImportDir(ctx, dir, func(path string, images []Image, err error) {
			events <- tried{filepath.Base(path), images, err}
		})
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return func(what string) tried {
		t.Helper()
		select {
		case ev := <-events:
			return ev
		case err := <-ended:
			t.Fatalf("ImportDir ended: %v", err)
		case <-time.After(10 * time.Second):
			t.Fatalf("no word of %s within ten seconds", what)
		}
		panic("unreachable")
	}
}

type tried struct {
	name   string
	images []Image
	err    error
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFolderIsImportedAndWatched(t *testing.T) {
	s, dir := open(t), t.TempDir()
	bad := dockerTar(t, "bad:1", tarOf(t, file{name: "../x"}))
	put(t, dir+"/a.tar", dockerTar(t, "a:1", tarOf(t, file{name: "a"})))
	put(t, dir+"/bad.tar", bad)
	put(t, dir+"/c.tar", dockerTar(t, "c:1", tarOf(t, file{name: "c"})))
	put(t, dir+"/notes.txt", []byte("not an image"))
	next := watched(t, s, dir)
	for _, want := range []string{"a.tar", "bad.tar", "c.tar", "."} {
		if ev := next(want); ev.name != want || (ev.err != nil) != (want == "bad.tar") {
			t.Fatalf("got %+v, want %s", ev, want)
		}
	}
	// A new file, a repaired one; what is known or still bad is not tried again.
	put(t, dir+"/d.tar", dockerTar(t, "d:1", tarOf(t, file{name: "d"})))
	if ev := next("d.tar"); ev.name != "d.tar" || ev.err != nil {
		t.Fatalf("got %+v", ev)
	}
	put(t, dir+"/new", dockerTar(t, "bad:2", tarOf(t, file{name: "x"})))
	if err := os.Rename(dir+"/new", dir+"/bad.tar"); err != nil {
		t.Fatal(err)
	}
	if ev := next("bad.tar"); ev.name != "bad.tar" || ev.err != nil {
		t.Fatalf("got %+v", ev)
	}
	if n := len(s.List()); n != 4 {
		t.Errorf("%d images, want 4", n)
	}
}

func TestFolderIsReadOnceAcrossRestarts(t *testing.T) {
	s, dir := open(t), t.TempDir()
	put(t, dir+"/a.tar", dockerTar(t, "a:1", tarOf(t, file{name: "a"})))
	next := watched(t, s, dir)
	next("a.tar")
	next("the end of the first pass")
	if err := s.Remove("a:1"); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	if ev := watched(t, s, dir)("the end of the first pass"); ev.name != "." {
		t.Fatalf("read again: %+v", ev)
	}
	if len(s.List()) != 0 {
		t.Error("a removed image came back by itself")
	}
	// But who asks for it gets it from the file it came from.
	if im, err := s.FromTar(t.Context(), "a:1", true); err != nil || im.Tags[0] != "docker.io/library/a:1" {
		t.Errorf("pull: %v, %v", im, err)
	}
	if _, err := s.FromTar(t.Context(), "nothing:1", true); err == nil {
		t.Error("an image out of nowhere")
	}
}

func TestFolderMayAppearLater(t *testing.T) {
	s, dir := open(t), filepath.Join(t.TempDir(), "images")
	next := watched(t, s, dir)
	next("the end of the first pass")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, dir+"/a.tar", dockerTar(t, "a:1", tarOf(t, file{name: "a"})))
	if ev := next("a.tar"); ev.name != "a.tar" || ev.err != nil {
		t.Fatalf("got %+v", ev)
	}
}

// A pod may ask for an image in the same moment in which its tar is copied in.
func TestPullWaitsForATarThatIsBeingWritten(t *testing.T) {
	s, dir := open(t), t.TempDir()
	next := watched(t, s, dir)
	next("the end of the first pass")
	data := dockerTar(t, "a:1", tarOf(t, file{name: "a"}))
	f, err := os.Create(dir + "/a.tar")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	half := len(data) / 2
	if _, err := f.Write(data[:half]); err != nil {
		t.Fatal(err)
	}
	type pulled struct {
		im  Image
		err error
	}
	got := make(chan pulled, 1)
	go func() {
		im, err := s.FromTar(context.Background(), "a:1", true)
		got <- pulled{im, err}
	}()
	if _, err := f.Write(data[half:]); err != nil {
		t.Fatal(err)
	}
	select {
	case p := <-got:
		if p.err != nil || len(p.im.Tags) != 1 {
			t.Fatalf("got %v, %v", p.im, p.err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no answer within ten seconds")
	}
}
