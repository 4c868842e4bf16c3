// Package netns makes the namespaces that a pod sandbox is made of, pins them by bind mounts so that no process has to
// hold them open, and runs code inside them. It knows nothing of addresses or routes (package link) and never makes
// mount or pid namespaces: those belong to a container, not to its sandbox.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Kind is a namespace by the name it has below /proc/PID/ns.
type Kind string

const (
	Net Kind = "net"
	IPC Kind = "ipc"
	UTS Kind = "uts"
)

var flags = map[Kind]int{Net: unix.CLONE_NEWNET, IPC: unix.CLONE_NEWIPC, UTS: unix.CLONE_NEWUTS}

// Create makes one namespace of each kind and pins it as a bind mount at dir/<kind>; dir is created if absent.
// A new uts namespace gets hostname (unless empty), a new net namespace has its loopback device up.
// The mounts appear in the mount namespace of this process and hold the namespaces until Unpin.
// Errors: Denied without CAP_SYS_ADMIN; Exhausted when a limit of /proc/sys/user/max_*_namespaces is reached.
// Repeat: Unpin first, a pinned dir is Exists. Crash: some pins stay; Unpin(dir) removes them.
// Source: namespaces(7), "Namespace lifetime"; netdevice(7) for the loopback flag.
func Create(dir, hostname string, kinds ...Kind) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("namespaces %s: %w", dir, err)
	}
	if err := pinPoints(dir, kinds); err != nil {
		return err
	}
	err := onLostThread(func() error { return create(dir, hostname, kinds) })
	if err != nil {
		if clean := Unpin(dir); clean != nil {
			err = errors.Join(err, clean)
		}
	}
	return err
}

// pinPoints makes the empty files that the namespaces are mounted on.
func pinPoints(dir string, kinds []Kind) error {
	for _, k := range kinds {
		f, err := os.OpenFile(filepath.Join(dir, string(k)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
		if errors.Is(err, os.ErrExist) {
			return fault.New(fault.Exists, "namespaces %s: %s is pinned already", dir, k)
		}
		if err != nil {
			return fmt.Errorf("namespaces %s: %w", dir, err)
		}
		f.Close()
	}
	return nil
}

func create(dir, hostname string, kinds []Kind) error {
	var all int
	for _, k := range kinds {
		all |= flags[k]
	}
	if err := unix.Unshare(all); err != nil {
		return kinded(err, "namespaces %s: unshare %v: %w", dir, kinds, err)
	}
	for _, k := range kinds {
		switch {
		case k == UTS && hostname != "":
			if err := unix.Sethostname([]byte(hostname)); err != nil {
				return fmt.Errorf("namespaces %s: hostname %q: %w", dir, hostname, err)
			}
		case k == Net:
			if err := up("lo"); err != nil {
				return fmt.Errorf("namespaces %s: bring lo up: %w", dir, err)
			}
		}
		to := filepath.Join(dir, string(k))
		if err := unix.Mount("/proc/thread-self/ns/"+string(k), to, "", unix.MS_BIND, ""); err != nil {
			return kinded(err, "namespaces %s: pin %s: %w", dir, k, err)
		}
	}
	return nil
}

// up sets IFF_UP on a device of the calling thread's net namespace. One ioctl costs a tenth of a netlink socket.
func up(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	if err := ioctl(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return ioctl(fd, unix.SIOCSIFFLAGS, req)
}

func ioctl(fd int, call uintptr, req *unix.Ifreq) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), call, uintptr(unsafe.Pointer(req))); errno != 0 {
		return errno
	}
	return nil
}

// Unpin removes the bind mounts below dir and dir itself; the namespaces end with their last process.
// Repeat: safe, an absent dir is no error. Crash: some pins may stay; repeat.
func Unpin(dir string) error {
	var errs []error
	for _, k := range []Kind{Net, IPC, UTS, User} {
		to := filepath.Join(dir, string(k))
		// A path may carry more than one mount if a crashed Create was repeated; EINVAL says that none is left.
		for {
			err := unix.Unmount(to, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			if err == nil {
				continue
			}
			if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("namespaces %s: unpin %s: %w", dir, k, err))
			}
			break
		}
		if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("namespaces %s: %w", dir, err))
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("namespaces %s: %w", dir, err))
	}
	return errors.Join(errs...)
}

// Pinned reports whether path is a live pin: a file of the kernel's namespace filesystem, not an empty leftover.
func Pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Do runs fn in the net namespace pinned at path and returns fn's error. fn runs on a thread of its own that ends with
// it: whatever fn starts on other goroutines runs outside the namespace, sockets that fn opens stay inside it.
// Errors: NotFound if path is absent or no longer a namespace.
func Do(path string, fn func() error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return kinded(err, "enter net namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	return onLostThread(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return kinded(err, "enter net namespace %s: %w", path, err)
		}
		return fn()
	})
}

// onLostThread runs fn on a locked thread that is never reused: the Go runtime ends a thread whose goroutine returns
// while locked, so no other goroutine can ever find itself in fn's namespaces.
//
// The first thread is the exception: Go parks it for ever instead of ending it, and /proc/self shows its namespaces as
// those of the process. While it is locked here, a second goroutine must land on another thread.
func onLostThread(fn func() error) error {
	done := make(chan error, 1)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			next := make(chan struct{})
			go func() { defer close(next); run() }()
			<-next
			runtime.UnlockOSThread()
			return
		}
		ended := false
		defer func() {
			if !ended {
				done <- fmt.Errorf("namespace work panicked: %v", recover())
			}
		}()
		err := fn()
		ended = true
		done <- err
	}
	go run()
	return <-done
}

func kinded(err error, format string, args ...any) error {
	kind := fault.Unknown
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		kind = fault.Denied
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		kind = fault.Exhausted
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL):
		kind = fault.NotFound
	}
	return fault.New(kind, format, args...)
}
