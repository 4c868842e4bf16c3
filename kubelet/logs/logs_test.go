package logs

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// writer is a runtime that keeps its log open until it is asked to reopen it.
type writer struct {
	t    *testing.T
	path string
	f    *os.File
	n    int
	fail error
}

func open(t *testing.T, path string) *writer {
	t.Helper()
	w := &writer{t: t, path: path}
	if err := w.reopen(t.Context(), "id"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.f.Close() })
	return w
}

func (w *writer) reopen(context.Context, string) error {
	if w.fail != nil {
		return w.fail
	}
	f, err := os.OpenFile(w.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err == nil {
		if w.f != nil {
			_ = w.f.Close()
		}
		w.f = f
	}
	return err
}

// lines writes numbered lines of 100 bytes each.
func (w *writer) lines(n int) {
	w.t.Helper()
	for range n {
		w.n++
		if _, err := fmt.Fprintf(w.f, "%099d\n", w.n); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *writer) rotator(size int64, files int) *Rotator {
	return New(Config{MaxSize: size, MaxFiles: files, Reopen: w.reopen, Running: func() []Log { return []Log{{"id", w.path}} }})
}

// all returns the numbers in all files of the log, oldest file first, and the files' names.
func all(t *testing.T, path string) (numbers []string, names []string) {
	t.Helper()
	old, err := rotated(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(old, path) {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		var in io.Reader = f
		if strings.HasSuffix(name, ".gz") {
			if in, err = gzip.NewReader(f); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		numbers = append(numbers, strings.Fields(string(raw))...)
		names = append(names, filepath.Base(name))
	}
	return numbers, names
}

func noGap(t *testing.T, numbers []string, last int) {
	t.Helper()
	for i, s := range numbers {
		if want := fmt.Sprintf("%099d", last-len(numbers)+1+i); s != want {
			t.Fatalf("line %d of %d is %s, want %s", i, len(numbers), s, want)
		}
	}
	if len(numbers) == 0 {
		t.Fatal("no lines")
	}
}

func TestRotationKeepsFourFilesAndTheNewestPlain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // file names carry the second
		w := open(t, filepath.Join(t.TempDir(), "0.log"))
		r := w.rotator(1000, 4)
		for range 7 {
			w.lines(9)
			r.Scan(t.Context()) // too small yet
			w.lines(3)
			r.Scan(t.Context())
			w.lines(1)
			time.Sleep(time.Second)
		}
		numbers, names := all(t, w.path)
		if len(names) != 4 || !strings.HasSuffix(names[0], ".gz") || !strings.HasSuffix(names[1], ".gz") || strings.HasSuffix(names[2], ".gz") || names[3] != "0.log" {
			t.Fatalf("%v", names)
		}
		noGap(t, numbers, w.n)
		if len(numbers) < 3*12 {
			t.Fatalf("only %d lines kept", len(numbers))
		}
	})
}

func TestRefusedReopenGivesTheNameBack(t *testing.T) {
	w := open(t, filepath.Join(t.TempDir(), "0.log"))
	r := w.rotator(1000, 4)
	w.lines(20)
	w.fail = errors.New("no")
	r.Scan(t.Context())
	w.lines(1)
	numbers, names := all(t, w.path)
	if len(names) != 1 || !r.failing["id"] {
		t.Fatalf("%v", names)
	}
	noGap(t, numbers, 21)
	w.fail = nil
	r.Scan(t.Context())
	w.lines(1)
	if numbers, names = all(t, w.path); len(names) != 2 || len(r.failing) != 0 {
		t.Fatalf("%v", names)
	}
	noGap(t, numbers, 22)
}

// Each row is what a kill at some instant of a rotation leaves behind.
func TestCrashesAreFinished(t *testing.T) {
	gz := func(t *testing.T, from string) {
		if err := squeeze(t.Context(), from); err != nil {
			t.Fatal(err)
		}
	}
	for name, breakIt := range map[string]func(t *testing.T, w *writer, aside string){
		"after rename": func(t *testing.T, w *writer, aside string) {
			if err := os.Rename(w.path, aside); err != nil {
				t.Fatal(err)
			}
		},
		"amid compressing": func(t *testing.T, w *writer, aside string) {
			if err := errors.Join(os.Rename(w.path, aside), w.reopen(t.Context(), ""), os.WriteFile(aside+".tmp", []byte("half"), 0o640)); err != nil {
				t.Fatal(err)
			}
		},
		"before removing the source": func(t *testing.T, w *writer, aside string) {
			if err := errors.Join(os.Rename(w.path, aside), w.reopen(t.Context(), "")); err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(aside)
			if err != nil {
				t.Fatal(err)
			}
			gz(t, aside)
			if err := os.WriteFile(aside, raw, 0o640); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := open(t, filepath.Join(t.TempDir(), "0.log"))
			r := w.rotator(1000, 5)
			w.lines(20)
			breakIt(t, w, w.path+".20260101-000000")
			r.Scan(t.Context())
			w.lines(20)
			r.Scan(t.Context())
			w.lines(5)
			numbers, names := all(t, w.path)
			noGap(t, numbers, w.n)
			if len(numbers) != w.n {
				t.Fatalf("%d of %d lines in %v", len(numbers), w.n, names)
			}
		})
	}
}

func TestRemoveTakesAllOfALogAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"0.log", "0.log.20260101-000000", "0.log.20250101-000000.gz", "1.log", "10.log.x"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := Remove(filepath.Join(dir, "0.log")); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Fatalf("%v %v", left, err)
	}
	if err := Remove(filepath.Join(dir, "gone", "0.log")); err != nil {
		t.Fatal(err)
	}
}

func TestLinks(t *testing.T) {
	root := t.TempDir()
	dir, logs := filepath.Join(root, "containers"), filepath.Join(root, "pods")
	log := filepath.Join(logs, "u1", "app", "0.log")
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"/elsewhere", log, log} {
		if err := Link(dir, "web", "shop", "app", "id1", to); err != nil {
			t.Fatal(err)
		}
	}
	at := filepath.Join(dir, "web_shop_app-id1.log")
	if raw, err := os.ReadFile(at); err != nil || string(raw) != "x" {
		t.Fatalf("%q %v", raw, err)
	}
	long := LinkName(strings.Repeat("p", 253), "shop", "app", "id")
	if len(long) != 255 || !strings.HasSuffix(long, ".log") {
		t.Fatalf("%d %s", len(long), long)
	}
	if err := os.Symlink("/nowhere/at/all", filepath.Join(dir, "foreign.log")); err != nil {
		t.Fatal(err)
	}
	if err := Link(dir, "dead", "shop", "app", "id2", filepath.Join(logs, "u2", "app", "0.log")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(log); err != nil { // as amid a rotation
		t.Fatal(err)
	}
	if err := UnlinkDead(dir, logs); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 || left[0].Name() != "foreign.log" || left[1].Name() != "web_shop_app-id1.log" {
		t.Fatalf("%v", left)
	}
	for range 2 {
		if err := Unlink(dir, "web", "shop", "app", "id1"); err != nil {
			t.Fatal(err)
		}
	}
}
