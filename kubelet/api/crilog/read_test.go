package crilog

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"worknode/fault"
	"worknode/task"
)

const sample = `2026-01-01T00:00:01.000000000Z stdout F one
2026-01-01T00:00:02.000000000Z stderr F two
2026-01-01T00:00:03.000000000Z stdout P thr
2026-01-01T00:00:03.500000000Z stderr F err
2026-01-01T00:00:04.000000000Z stdout P e
2026-01-01T00:00:04.100000000Z stdout F e
torn garbage
2026-01-01T00:00:05.000000000Z stdout F 
2026-01-01T00:00:06.000000000Z stdout F:extra six words  here
`

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReadSelects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, sample)
	at := func(s string) time.Time { v, _ := time.Parse(time.RFC3339, s); return v }
	for _, c := range []struct {
		name string
		with func(*Options)
		want string
	}{
		{"everything, records joined", func(*Options) {}, "one\ntwo\nerr\nthree\n\nsix words  here\n"},
		{"stdout", func(o *Options) { o.Stderr = false }, "one\nthree\n\nsix words  here\n"},
		{"stderr", func(o *Options) { o.Stdout = false }, "two\nerr\n"},
		{"last two", func(o *Options) { o.Tail = 2 }, "\nsix words  here\n"},
		{"last three of stdout", func(o *Options) { o.Tail, o.Stderr = 3, false }, "three\n\nsix words  here\n"},
		{"last none", func(o *Options) { o.Tail = 0 }, ""},
		{"more than there is", func(o *Options) { o.Tail = 99 }, "one\ntwo\nerr\nthree\n\nsix words  here\n"},
		{"since", func(o *Options) { o.Since = at("2026-01-01T00:00:05Z") }, "\nsix words  here\n"},
		{"limit", func(o *Options) { o.Limit = 5 }, "one\nt"},
		{"limit zero", func(o *Options) { o.Limit = 0 }, ""},
		{"timestamps once a line", func(o *Options) { o.Timestamps, o.Stderr = true, false },
			"2026-01-01T00:00:01.000000000Z one\n2026-01-01T00:00:03.000000000Z three\n2026-01-01T00:00:05.000000000Z \n2026-01-01T00:00:06.000000000Z six words  here\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := All()
			c.with(&o)
			var out bytes.Buffer
			if err := Read(t.Context(), &out, path, o, nil, nil); err != nil {
				t.Fatal(err)
			}
			if out.String() != c.want {
				t.Fatalf("got  %q\nwant %q", out.String(), c.want)
			}
		})
	}
	if err := Read(t.Context(), io.Discard, path+"x", All(), nil, nil); !fault.Is(err, fault.NotFound) {
		t.Fatalf("missing log: %v", err)
	}
}

func TestTailAcrossChunks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	var b strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&b, "2026-01-01T00:00:01.000000000Z stdout F line %d %s\n", i, strings.Repeat("x", i%97))
	}
	write(t, path, b.String())
	for _, n := range []int64{1, 5, 1234, 19999, 20000} {
		o := All()
		o.Tail = n
		var out bytes.Buffer
		if err := Read(t.Context(), &out, path, o, nil, nil); err != nil {
			t.Fatal(err)
		}
		lines := strings.SplitAfter(out.String(), "\n")
		if got := int64(len(lines) - 1); got != n || !strings.HasPrefix(lines[0], fmt.Sprintf("line %d ", 20000-n)) {
			t.Fatalf("tail %d: %d lines, first %q", n, got, lines[0])
		}
	}
}

func TestLongLineIsOneLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	piece := strings.Repeat("y", 40<<10) // longer than the read buffer
	for range 40 {                       // 1.6 MiB, beyond what is held back for joining
		write(t, path, "2026-01-01T00:00:01Z stdout P "+piece+"\n")
	}
	write(t, path, "2026-01-01T00:00:01Z stdout F end\n2026-01-01T00:00:01Z stdout P open")
	write(t, path, "\n")
	var out bytes.Buffer
	if err := Read(t.Context(), &out, path, All(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat(piece, 40) + "end\nopen"; out.String() != want {
		t.Fatalf("%d bytes, want %d", out.Len(), len(want))
	}
}

// follower runs Read in the background and hands out its lines.
type follower struct {
	lines chan string
	ended chan struct{}
	done  chan error
}

func follow(t *testing.T, path string) *follower {
	t.Helper()
	tasks := task.New(t.Context())
	w := NewWatcher(tasks)
	changed, stop, err := w.Watch(path)
	if err != nil {
		t.Fatal(err)
	}
	fl := &follower{make(chan string), make(chan struct{}), make(chan error, 1)}
	pr, pw := io.Pipe()
	tasks.Go("read", func(ctx context.Context) {
		o := All()
		o.Follow = true
		err := Read(ctx, pw, path, o, changed, fl.ended)
		stop()
		_ = pw.Close()
		fl.done <- err
	})
	tasks.Go("lines", func(context.Context) {
		defer close(fl.lines)
		for b := make([]byte, 0, 4096); ; {
			i := bytes.IndexByte(b, '\n')
			if i >= 0 {
				fl.lines <- string(b[:i])
				b = b[i+1:]
				continue
			}
			chunk := make([]byte, 4096)
			n, err := pr.Read(chunk)
			if b = append(b, chunk[:n]...); err != nil {
				return
			}
		}
	})
	return fl
}

func (f *follower) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-f.lines:
			if got != w {
				t.Fatalf("got %q, want %q", got, w)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("line %q did not come within 10 s", w)
		}
	}
}

func logLine(s string) string { return "2026-01-01T00:00:01Z stdout F " + s + "\n" }

func TestFollowSurvivesRotationsAndEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, logLine("a"))
	f := follow(t, path)
	f.expect(t, "a")
	write(t, path, logLine("b"))
	f.expect(t, "b")
	write(t, path, logLine("tor")[:20]) // half a line is not shown ...
	write(t, path, logLine("tor")[20:]) // ... until it is whole
	f.expect(t, "tor")

	// The writer still owns the old file until the new one has its first line.
	if err := os.Rename(path, path+".20260101-000001"); err != nil {
		t.Fatal(err)
	}
	write(t, path, "")
	write(t, path+".20260101-000001", logLine("c"))
	f.expect(t, "c")
	write(t, path+".20260101-000001", logLine("d"))
	write(t, path, logLine("e"))
	f.expect(t, "d", "e")

	close(f.ended)
	if err := <-f.done; err != nil {
		t.Fatal(err)
	}
}

// While the reader does not take its lines, the log is rotated several times and the middle is compressed.
func TestSlowFollowerMissesNoRotatedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, logLine("1")+logLine("2"))
	f := follow(t, path)
	f.expect(t, "1")
	rotate := func(n int, zip bool) {
		to := fmt.Sprintf("%s.20260101-00000%d", path, n)
		if err := os.Rename(path, to); err != nil {
			t.Fatal(err)
		}
		if !zip {
			return
		}
		raw, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write(raw)
		_ = z.Close()
		write(t, to+".gz", b.String())
		if err := os.Remove(to); err != nil {
			t.Fatal(err)
		}
	}
	rotate(1, true)
	write(t, path, logLine("3"))
	rotate(2, true)
	write(t, path, logLine("4"))
	rotate(3, false)
	write(t, path, logLine("5"))
	close(f.ended)
	f.expect(t, "2", "3", "4", "5")
	if err := <-f.done; err != nil {
		t.Fatal(err)
	}
}

func TestWatcherLetsGoOfInotify(t *testing.T) {
	w := NewWatcher(task.New(t.Context()))
	dir := t.TempDir()
	a, stopA, err := w.Watch(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	_, stopB, err := w.Watch(filepath.Join(dir, "b"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "a"), "x")
	select {
	case <-a:
	case <-time.After(10 * time.Second):
		t.Fatal("no token after a write")
	}
	stopA()
	stopA()
	stopB()
	w.tasks.Wait() // the pump ends only when the instance is closed
	if w.fs != nil {
		t.Fatal("instance kept")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "0.log")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		all, last := All(), All()
		last.Tail = 1
		var a, b bytes.Buffer
		if err := Read(t.Context(), &a, path, all, nil, nil); err != nil {
			t.Fatal(err)
		}
		if err := Read(t.Context(), &b, path, last, nil, nil); err != nil {
			t.Fatal(err)
		}
		if b.Len() > a.Len() {
			t.Fatalf("the last line %q is longer than all %q", b.String(), a.String())
		}
	})
}
