package monitor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The monitor may be killed between any two system calls. Each case is the state that such a moment leaves behind;
// the next monitor must end with the same log, and go on behind the batch.
func TestJournalRecoversEveryStep(t *testing.T) {
	const batch, next = "one\ntwo\n", "three\n"
	at := time.Unix(1700000000, 123456789)
	full, used := format(nil, []byte(batch), 1, at, 0)
	if used != len(batch) {
		t.Fatalf("format used %d of %d bytes", used, len(batch))
	}
	type kill struct {
		name    string
		state   uint32
		written int // bytes of the batch in the file
		taken   bool
		renamed bool
	}
	kills := []kill{{name: "idle", state: idle}, {name: "written", state: written, written: len(full)},
		{name: "taken", state: written, written: len(full), taken: true},
		{name: "taken and renamed", state: written, written: len(full), taken: true, renamed: true}}
	for n := 0; n <= len(full); n++ {
		kills = append(kills, kill{name: fmt.Sprint("pending ", n), state: pending, written: n},
			kill{name: fmt.Sprint("pending, renamed ", n), state: pending, written: n, renamed: true})
	}
	for _, k := range kills {
		t.Run(k.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "log")
			const before = "earlier\n"
			if err := os.WriteFile(path, []byte(before+string(full[:k.written])), 0o600); err != nil {
				t.Fatal(err)
			}
			r, w, err := pipe("stderr", true)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			j, err := newJournal()
			if err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				t.Fatal(err)
			}
			st.Size = int64(len(before))
			last := batch[len(batch)-1]
			j.begin(1, 0, at, &st, len(batch), last)
			j.setState(k.state)
			held := batch
			if k.taken {
				j.page.mark, held = last, ""
			}
			fmt.Fprint(w, held, next)
			w.Close()
			name := path
			if k.renamed {
				name = path + ".1"
				if err := os.Rename(path, name); err != nil {
					t.Fatal(err)
				}
			}
			f, err := openLog(path)
			if err != nil {
				t.Fatal(err)
			}
			l := &logfile{id: "c", path: path, file: f, journal: j}
			defer l.close()
			if err := l.recoverBatch([2]*os.File{nil, r}); err != nil {
				t.Fatal(err)
			}
			if j.state() != idle {
				t.Errorf("state is %d after recovery", j.state())
			}
			got, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			want, left := before+string(full), next
			if k.state == idle {
				want, left = before, batch+next
			}
			if string(got) != want {
				t.Errorf("the log is %q, want %q", got, want)
			}
			buf := make([]byte, 100)
			n, _ := r.Read(buf)
			if string(buf[:n]) != left {
				t.Errorf("the pipe holds %q, want %q", buf[:n], left)
			}
		})
	}
}

func TestFormat(t *testing.T) {
	at := time.Unix(0, 0)
	const head = "1970-01-01T00:00:00.000000000Z stdout "
	x := strings.Repeat("x", lineLimit)
	for _, tc := range []struct {
		name, data string
		tail       byte
		used       int
		want       []string
	}{
		{"nothing", "", 0, 0, nil},
		{"unfinished", "abc", 0, 0, nil},
		{"unfinished at the end", "abc", 'F', 3, []string{"F abc"}},
		{"unfinished, taken early", "abc", 'P', 3, []string{"P abc"}},
		{"lines and a tail", "a\n\nb", 0, 3, []string{"F a", "F "}},
		{"as long as a record", x + "\n", 0, lineLimit + 1, []string{"F " + x}},
		{"as long as a record, unfinished", x, 0, 0, nil},
		{"one byte over", x + "y", 0, lineLimit, []string{"P " + x}},
		{"one byte over, finished", x + "y\n", 0, lineLimit + 2, []string{"P " + x, "F y"}},
		{"carriage returns stay", "a\r\n", 0, 3, []string{"F a\r"}},
	} {
		out, used := format(nil, []byte(tc.data), 0, at, tc.tail)
		want := ""
		for _, w := range tc.want {
			want += head + w + "\n"
		}
		if used != tc.used || string(out) != want {
			t.Errorf("%s: used %d, want %d; out %.60q, want %.60q", tc.name, used, tc.used, out, want)
		}
	}
	if out, used := format(nil, []byte(strings.Repeat("\n", 100000)), 0, at, 0); len(out) > batchOut+100 || used == 0 {
		t.Errorf("a batch of empty lines makes %d bytes from %d", len(out), used)
	}
}
