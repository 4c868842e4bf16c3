package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// ends is a connected pair; the second end is raw, for saying what no Conn would.
func ends(t *testing.T) (*Conn, int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewConn(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, pair[1]
}

func TestFramesCarryFiles(t *testing.T) {
	a, fd := ends(t)
	b, err := NewConn(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// The big frame exceeds every socket buffer: sender and receiver must go on in parts, with the files on the first.
	big := strings.Repeat("x", 3<<20)
	sent := make(chan error, 1)
	go func() {
		err := a.Send(Request{Seq: 1, Start: &Start{ID: big}}, w)
		if err == nil {
			err = a.Send(Request{Seq: 2})
		}
		sent <- err
	}()
	var req Request
	fds, err := b.Recv(&req)
	if err != nil || req.Seq != 1 || req.Start.ID != big || len(fds) != 1 {
		t.Fatalf("frame %d, %d files (%v)", req.Seq, len(fds), err)
	}
	kept, err := Kept(fds, []string{"pipe"})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := kept[0].Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	kept[0].Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "hello" {
		t.Errorf("through the file came %q (%v)", got, err)
	}
	req = Request{}
	if fds, err := b.Recv(&req); err != nil || req.Seq != 2 || len(fds) != 0 {
		t.Errorf("second frame %d, %d files (%v)", req.Seq, len(fds), err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	a.Close()
	if _, err := b.Recv(&req); !errors.Is(err, io.EOF) {
		t.Errorf("after close: %v, want end of file", err)
	}
}

func TestBadFramesAreRefused(t *testing.T) {
	frame := func(size uint32, body string) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, size), body...)
	}
	for _, tc := range []struct {
		name string
		data []byte
		want func(error) bool
	}{
		{"too large", frame(MaxFrame+1, ""), func(err error) bool { return fault.Is(err, fault.Invalid) }},
		{"not JSON", frame(3, "{]x"), func(err error) bool { return fault.Is(err, fault.Invalid) }},
		{"wrong type", frame(12, `{"Seq":"one"}`[:12]), func(err error) bool { return fault.Is(err, fault.Invalid) }},
		{"cut in the size", []byte{1, 0}, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		{"cut in the body", frame(100, "{"), func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
	} {
		c, fd := ends(t)
		if _, err := unix.Write(fd, tc.data); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		var req Request
		if _, err := c.Recv(&req); err == nil || !tc.want(err) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestSendRefusesWhatCannotTravel(t *testing.T) {
	c, fd := ends(t)
	defer unix.Close(fd)
	if err := c.Send(Request{Start: &Start{ID: strings.Repeat("x", MaxFrame)}}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("a frame too large: %v", err)
	}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	files := make([]*os.File, MaxFiles+1)
	for i := range files {
		files[i] = f
	}
	if err := c.Send(Request{}, files...); !fault.Is(err, fault.Invalid) {
		t.Errorf("too many files: %v", err)
	}
	f.Close()
	if err := c.Send(Request{}, f); !fault.Is(err, fault.Invalid) {
		t.Errorf("a closed file: %v", err)
	}
}

func TestSocketPaths(t *testing.T) {
	dir, err := os.MkdirTemp("", "wnw")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if _, err := Dial(filepath.Join(dir, "absent")); !fault.Is(err, fault.NotFound) {
		t.Errorf("no socket: %v", err)
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 120))); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("a path too long: %v", err)
	}
	path := filepath.Join(dir, "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket's mode: %v (%v)", st.Mode(), err)
	}
	if _, err := Listen(path); !fault.Is(err, fault.Busy) {
		t.Errorf("a second listener: %v", err)
	}
	l.Close()
	if _, err := Dial(path); !fault.Is(err, fault.Temporary) {
		t.Errorf("nobody listens: %v", err)
	}
	l, err = Listen(path)
	if err != nil {
		t.Errorf("a stale socket was not replaced: %v", err)
	} else {
		l.Close()
	}
}

func FuzzRecv(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00{}"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("\x20\x00\x00\x00{\"Seq\":1,\"Signal\":{\"ID\":\"x\"}}  "))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64<<10 {
			t.Skip("more than a socket takes at once")
		}
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		c, err := NewConn(pair[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := unix.Write(pair[1], data); err != nil {
			t.Fatal(err)
		}
		unix.Close(pair[1])
		for {
			var req Request
			if _, err := c.Recv(&req); err != nil {
				return
			}
		}
	})
}
