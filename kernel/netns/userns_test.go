package netns

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Root of the user namespace must own the other namespaces: whoever is root in the pod may change the pod's network.
func TestCreateOwned(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ns")
	if err := CreateOwned(dir, "in-a-pod", IDMap{UID: 100000, GID: 200000, Size: 65536}, Net, UTS, IPC); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := Unpin(dir); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("pins stay: %v", err)
		}
	}()
	inode := func(fd int) uint64 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	open := func(k Kind) int {
		fd, err := unix.Open(filepath.Join(dir, string(k)), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	user := inode(open(User))
	for _, k := range []Kind{Net, UTS, IPC} {
		owner, err := unix.IoctlRetInt(open(k), unix.NS_GET_USERNS)
		if err != nil {
			t.Fatal(err)
		}
		if got := inode(owner); got != user {
			t.Errorf("%s belongs to user namespace %d, not to the pod's %d", k, got, user)
		}
		unix.Close(owner)
	}
	if err := CreateOwned(dir, "", IDMap{Size: 1}); err == nil {
		t.Error("pinned twice")
	}
}

func TestHoldRefusesImpossibleMapping(t *testing.T) {
	if h, err := Hold(IDMap{UID: 100000, GID: 100000, Size: 0}); err == nil {
		h.Close()
		t.Error("a mapping of no ids was taken")
	}
}
