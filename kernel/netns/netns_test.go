package netns

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes namespaces: run it as root")
	}
}

func TestCreatePinsNamespacesThatOutliveTheThread(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "box")
	if err := Create(dir, "pod-a", Net, IPC, UTS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Unpin(dir) })
	own := inode(t, "/proc/self/ns/net")
	for _, k := range []Kind{Net, IPC, UTS} {
		path := filepath.Join(dir, string(k))
		if !Pinned(path) || inode(t, path) == inode(t, "/proc/self/ns/"+string(k)) {
			t.Fatalf("%s is not a namespace of its own", k)
		}
	}
	err := Do(filepath.Join(dir, "net"), func() error {
		if got := inode(t, "/proc/thread-self/ns/net"); got == own {
			return errors.New("Do ran outside the namespace")
		}
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			return err
		}
		if lo.Flags&net.FlagUp == 0 {
			return errors.New("lo is down")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := inode(t, "/proc/thread-self/ns/net"); got != own {
		t.Fatal("Do left a thread of the pool in the namespace")
	}
}

func TestHostnameIsSetInsideOnly(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "box")
	before, _ := os.Hostname()
	if err := Create(dir, "pod-b", UTS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Unpin(dir) })
	fd, err := unix.Open(filepath.Join(dir, "uts"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var inside string
	err = onLostThread(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWUTS); err != nil {
			return err
		}
		var u unix.Utsname
		err := unix.Uname(&u)
		inside = unix.ByteSliceToString(u.Nodename[:])
		return err
	})
	if after, _ := os.Hostname(); err != nil || inside != "pod-b" || after != before {
		t.Fatalf("inside %q, outside %q -> %q, %v", inside, before, after, err)
	}
}

func TestUnpinLeavesNothingAndMayBeRepeated(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "box")
	for range 2 {
		if err := Create(dir, "x", Net, IPC, UTS); err != nil {
			t.Fatal(err)
		}
		if err := Create(dir, "x", Net); !fault.Is(err, fault.Exists) {
			t.Fatalf("a second Create must be refused, got %v", err)
		}
		for range 2 {
			if err := Unpin(dir); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s is left behind: %v", dir, err)
		}
	}
	if err := Do(filepath.Join(dir, "net"), func() error { return nil }); !fault.Is(err, fault.NotFound) {
		t.Fatalf("want NotFound, got %v", err)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func BenchmarkCreate(b *testing.B) {
	needRoot(b)
	dir := filepath.Join(b.TempDir(), "box")
	for b.Loop() {
		if err := Create(dir, "pod", Net, IPC, UTS); err != nil {
			b.Fatal(err)
		}
		if err := Unpin(dir); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDo(b *testing.B) {
	needRoot(b)
	dir := filepath.Join(b.TempDir(), "box")
	if err := Create(dir, "pod", Net); err != nil {
		b.Fatal(err)
	}
	defer Unpin(dir)
	for b.Loop() {
		if err := Do(filepath.Join(dir, "net"), func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
