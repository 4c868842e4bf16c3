package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/stub"
)

// User is the kind of a user namespace. CreateOwned pins one, Create never.
const User Kind = "user"

// IDMap is a user namespace's one mapping, for users and for groups: its ids from 0 to Size-1 are the host's from UID
// and GID on.
type IDMap struct{ UID, GID, Size uint32 }

// CreateOwned is Create with a user namespace that owns the others, pinned at dir/user.
// Errors: as Create; Invalid if the kernel refuses the mapping; Unsupported on an architecture without package stub.
// Repeat and crash: as Create. Source: user_namespaces(7).
func CreateOwned(dir, hostname string, ids IDMap, kinds ...Kind) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("namespaces %s: %w", dir, err)
	}
	all := append([]Kind{User}, kinds...)
	if err := pinPoints(dir, all); err != nil {
		return err
	}
	h, err := Hold(ids, kinds...)
	if err == nil {
		err = h.pin(dir, hostname, all)
		h.Close()
	}
	if err != nil {
		if clean := Unpin(dir); clean != nil {
			err = errors.Join(err, clean)
		}
	}
	return err
}

// Holder is a process that does nothing but be in a new user namespace, and others that this one owns.
type Holder struct {
	pid  int
	line *os.File // its standard input: it ends when the last of us does
}

// Hold starts a holder. The caller closes it; it also ends if the caller dies.
func Hold(ids IDMap, kinds ...Kind) (*Holder, error) {
	return HoldMapped([]syscall.SysProcIDMap{{HostID: int(ids.UID), Size: int(ids.Size)}},
		[]syscall.SysProcIDMap{{HostID: int(ids.GID), Size: int(ids.Size)}}, kinds...)
}

// HoldMapped is Hold with any mapping that the kernel takes.
func HoldMapped(uids, gids []syscall.SysProcIDMap, kinds ...Kind) (*Holder, error) {
	program, err := stub.HoldFile()
	if err != nil {
		return nil, err
	}
	defer program.Close()
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, fault.New(fault.Exhausted, "user namespace: pipe: %w", err)
	}
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	defer null.Close()
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, GidMappingsEnableSetgroups: true,
		UidMappings: uids, GidMappings: gids,
	}
	for _, k := range kinds {
		attr.Cloneflags |= uintptr(flags[k])
	}
	pid, err := syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(int(program.Fd())), []string{"worknode-hold"},
		&syscall.ProcAttr{Dir: "/", Files: []uintptr{theirs.Fd(), null.Fd(), null.Fd()}, Sys: attr})
	if err != nil {
		ours.Close()
		err = kinded(err, "user namespace with users %v and groups %v: %w", uids, gids, err)
		return nil, fault.Hint(err, "the kernel needs user namespaces: see /proc/sys/user/max_user_namespaces")
	}
	return &Holder{pid: pid, line: ours}, nil
}

// Path names one of the holder's namespaces, for as long as the holder lives.
func (h *Holder) Path(k Kind) string { return fmt.Sprintf("/proc/%d/ns/%s", h.pid, k) }

// Close ends the holder.
func (h *Holder) Close() {
	h.line.Close()
	_ = unix.Kill(h.pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(h.pid, nil, 0, nil); err != unix.EINTR {
			return
		}
	}
}

func (h *Holder) pin(dir, hostname string, kinds []Kind) error {
	err := onLostThread(func() error {
		for _, k := range kinds {
			switch {
			case k == UTS && hostname != "":
				if err := h.join(k); err != nil {
					return err
				}
				if err := unix.Sethostname([]byte(hostname)); err != nil {
					return fmt.Errorf("hostname %q: %w", hostname, err)
				}
			case k == Net:
				if err := h.join(k); err != nil {
					return err
				}
				if err := up("lo"); err != nil {
					return fmt.Errorf("bring lo up: %w", err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("namespaces %s: %w", dir, err)
	}
	for _, k := range kinds {
		if err := unix.Mount(h.Path(k), filepath.Join(dir, string(k)), "", unix.MS_BIND, ""); err != nil {
			return kinded(err, "namespaces %s: pin %s: %w", dir, k, err)
		}
	}
	return nil
}

// join enters one of the holder's namespaces with this thread.
func (h *Holder) join(k Kind) error {
	fd, err := unix.Open(h.Path(k), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: h.Path(k), Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, flags[k]); err != nil {
		return fmt.Errorf("enter the %s namespace of process %d: %w", k, h.pid, err)
	}
	return nil
}
