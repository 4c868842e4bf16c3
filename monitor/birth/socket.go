package birth

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"worknode/kernel/mount"
)

// Sockets here are made by hand: package net would add itself to every init, which is this same binary.

// Listen makes a socket of that name in a folder, for Order.Listen.
func Listen(dir, name string) (*os.File, error) {
	fd, err := local(dir, name, func(fd int, at *unix.SockaddrUnix) error {
		if err := unix.Bind(fd, at); err != nil {
			return os.NewSyscallError("bind", err)
		}
		return os.NewSyscallError("listen", unix.Listen(fd, 4))
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Dial connects to a socket. The caller closes the descriptor.
// Errors: the kernel's; ECONNREFUSED if nobody listens any more.
func Dial(dir, name string) (int, error) {
	return local(dir, name, func(fd int, at *unix.SockaddrUnix) error {
		return os.NewSyscallError("connect", unix.Connect(fd, at))
	})
}

// SendFile passes a file on over a socket, with a word of text. Source: unix(7), SCM_RIGHTS.
func SendFile(socket int, f *os.File, word string) error {
	return os.NewSyscallError("sendmsg", unix.Sendmsg(socket, []byte(word), unix.UnixRights(int(f.Fd())), nil, unix.MSG_NOSIGNAL))
}

// local names the socket by its folder's descriptor, as the kernel takes only 107 bytes.
func local(dir, name string, use func(fd int, at *unix.SockaddrUnix) error) (int, error) {
	if dir == "" {
		dir = "."
	}
	folder, err := os.Open(dir)
	if err != nil {
		return -1, err
	}
	defer folder.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := use(fd, &unix.SockaddrUnix{Name: filepath.Join(mount.FdPath(int(folder.Fd())), name)}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
