package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Conn is one end of a connection. Send may be called from several goroutines, Recv from one.
// It is built on os.File and not on package net, whose memory every node would pay in the monitor.
type Conn struct {
	f   *os.File
	raw rawConn

	mu sync.Mutex // one frame at a time
}

type rawConn interface {
	Control(func(fd uintptr)) error
	Read(func(fd uintptr) bool) error
	Write(func(fd uintptr) bool) error
}

// NewConn takes over a connected unix stream socket. It makes the socket non-blocking.
func NewConn(fd int) (*Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Conn{f: f, raw: raw}, nil
}

// Close ends the connection; a blocked Recv returns.
func (c *Conn) Close() error { return c.f.Close() }

// SetReadDeadline bounds the next Recv.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.f.SetReadDeadline(t) }

// SetWriteDeadline bounds the next Send.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.f.SetWriteDeadline(t) }

// Wait returns when something has arrived, the peer's end included; it takes nothing. From the goroutine of Recv only.
func (c *Conn) Wait() error { return waitReadable(c.raw) }

// Raw calls fn with the connection's descriptor, which stays open meanwhile.
func (c *Conn) Raw(fn func(fd uintptr)) error { return c.raw.Control(fn) }

func waitReadable(raw rawConn) error {
	var err error
	werr := raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		var n int
		if n, err = unix.Poll(p, 0); err == unix.EINTR {
			err = nil
			return false
		}
		return n > 0 || err != nil
	})
	if werr != nil {
		err = werr
	}
	return err
}

// Send writes v as one frame that carries duplicates of files; the caller keeps its own.
// Errors: Exhausted if the frame is over MaxFrame, Invalid for too many files or a closed one; a broken connection else.
func (c *Conn) Send(v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fault.New(fault.Invalid, "encode frame: %w", err)
	}
	if len(body) > MaxFrame {
		return fault.New(fault.Exhausted, "frame of %d bytes is over the limit of %d", len(body), MaxFrame)
	}
	if len(files) > MaxFiles {
		return fault.New(fault.Invalid, "%d files in one frame, at most %d", len(files), MaxFiles)
	}
	buf := make([]byte, 4+len(body))
	binary.LittleEndian.PutUint32(buf, uint32(len(body)))
	copy(buf[4:], body)
	return withFds(files, nil, func(fds []int) error { return c.write(buf, fds) })
}

// withFds calls fn while every file is pinned open, so that no descriptor is closed and reused meanwhile. It never
// uses File.Fd, which would turn the shared open file description to blocking.
func withFds(files []*os.File, fds []int, fn func([]int) error) error {
	if len(files) == 0 {
		return fn(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return fault.New(fault.Invalid, "file %s: %w", files[0].Name(), err)
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = withFds(files[1:], append(fds, int(fd)), fn) })
	if err != nil {
		return fault.New(fault.Invalid, "file %s: %w", files[0].Name(), err)
	}
	return inner
}

func (c *Conn) write(buf []byte, fds []int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for len(buf) > 0 {
		var n int
		var err error
		werr := c.raw.Write(func(fd uintptr) bool {
			for {
				n, err = unix.SendmsgN(int(fd), buf, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
				if err != unix.EINTR {
					return err != unix.EAGAIN
				}
			}
		})
		if werr != nil {
			err = werr
		}
		if err != nil {
			return fmt.Errorf("send frame: %w", err)
		}
		buf, oob = buf[n:], nil
	}
	return nil
}

// Recv reads one frame into v and returns the descriptors that came with it, close-on-exec, which the caller owns.
// Errors: io.EOF when the peer closed between frames.
func (c *Conn) Recv(v any) ([]int, error) {
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(MaxFiles*4))
	fds, err := c.readFull(head[:], oob)
	if err != nil {
		return nil, closing(fds, err)
	}
	size := binary.LittleEndian.Uint32(head[:])
	if size > MaxFrame {
		return nil, closing(fds, fault.New(fault.Invalid, "frame of %d bytes is over the limit of %d", size, MaxFrame))
	}
	body := make([]byte, size)
	if _, err := c.readFull(body, nil); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, closing(fds, err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return nil, closing(fds, fault.New(fault.Invalid, "decode frame: %w", err))
	}
	return fds, nil
}

func closing(fds []int, err error) error {
	CloseAll(fds)
	return err
}

func (c *Conn) readFull(buf, oob []byte) (fds []int, err error) {
	for got := 0; got < len(buf); {
		var n, oobn int
		var rerr error
		err := c.raw.Read(func(fd uintptr) bool {
			for {
				n, oobn, _, _, rerr = unix.Recvmsg(int(fd), buf[got:], oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
				if rerr != unix.EINTR {
					return rerr != unix.EAGAIN
				}
			}
		})
		if err == nil {
			err = rerr
		}
		if err != nil {
			return fds, fmt.Errorf("receive frame: %w", err)
		}
		if oobn > 0 {
			more, err := rights(oob[:oobn])
			fds = append(fds, more...)
			if err != nil {
				return fds, err
			}
		}
		if n == 0 {
			if got == 0 {
				return fds, io.EOF
			}
			return fds, io.ErrUnexpectedEOF
		}
		got += n
	}
	return fds, nil
}

func rights(oob []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds, nil
}

// CloseAll closes raw descriptors.
func CloseAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Polled wraps received descriptors for reading and writing: non-blocking ones wait in the poller, not in a thread.
func Polled(fds []int, names []string) []*os.File {
	out := make([]*os.File, len(fds))
	for i, fd := range fds {
		out[i] = os.NewFile(uintptr(fd), nameOf(names, i))
	}
	return out
}

// Kept wraps received descriptors for keeping only. os.NewFile would put a non-blocking descriptor into the poller,
// and then every log line of every container would wake the keeper: so each File is made around an unpolled
// descriptor, and the received one is then duplicated over it.
func Kept(fds []int, names []string) ([]*os.File, error) {
	out := make([]*os.File, 0, len(fds))
	for i, fd := range fds {
		dummy, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			f := os.NewFile(uintptr(dummy), nameOf(names, i))
			out = append(out, f)
			err = unix.Dup3(fd, dummy, unix.O_CLOEXEC)
		}
		if err != nil {
			for _, f := range out {
				f.Close()
			}
			CloseAll(fds[i:])
			return nil, fmt.Errorf("keep descriptor: %w", err)
		}
		unix.Close(fd)
	}
	return out, nil
}

func nameOf(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return "file"
}

// maxPath is the longest socket path the kernel takes: sun_path less its final zero. Source: unix(7).
const maxPath = 107

func address(path string) (*unix.SockaddrUnix, error) {
	if len(path) > maxPath {
		return nil, fault.Hint(fault.New(fault.Invalid, "socket path %s has %d bytes, the kernel takes %d", path, len(path), maxPath),
			"choose a shorter directory")
	}
	return &unix.SockaddrUnix{Name: path}, nil
}

// Dial connects to the monitor's socket. Errors: NotFound if there is none, Temporary if nobody answers there.
func Dial(path string) (*Conn, error) {
	addr, err := address(path)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	for {
		err = unix.Connect(fd, addr)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		kind := fault.Temporary
		if err == unix.ENOENT {
			kind = fault.NotFound
		}
		return nil, fault.New(kind, "connect to %s: %w", path, err)
	}
	return NewConn(fd)
}

// Listener accepts connections on a unix socket that only its owner may use.
type Listener struct {
	f   *os.File
	raw rawConn
}

// Listen binds path with mode 0600. A socket file that nobody answers on is replaced.
// Errors: Busy if another process serves it.
func Listen(path string) (*Listener, error) {
	addr, err := address(path)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	err = unix.Bind(fd, addr)
	if err == unix.EADDRINUSE {
		if c, derr := Dial(path); derr == nil {
			_ = c.Close()
			unix.Close(fd)
			return nil, fault.Hint(fault.New(fault.Busy, "socket %s: another monitor answers there", path),
				"stop it, or use another directory")
		}
		if err = unix.Unlink(path); err == nil {
			err = unix.Bind(fd, addr)
		}
	}
	if err == nil {
		err = unix.Chmod(path, 0o600)
	}
	if err == nil {
		err = unix.Listen(fd, 64)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return NewListener(fd, path)
}

// NewListener takes over a listening unix socket, such as one that a predecessor left open. path is for messages.
func NewListener(fd int, path string) (*Listener, error) {
	err := unix.SetNonblock(fd, true)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Listener{f, raw}, nil
}

// Wait returns when somebody has connected; it accepts nobody.
func (l *Listener) Wait() error { return waitReadable(l.raw) }

// Raw calls fn with the socket's descriptor, which stays open meanwhile.
func (l *Listener) Raw(fn func(fd uintptr)) error { return l.raw.Control(fn) }

// Accept waits for the next connection.
func (l *Listener) Accept() (*Conn, error) {
	var fd int
	var err error
	rerr := l.raw.Read(func(s uintptr) bool {
		for {
			fd, _, err = unix.Accept4(int(s), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err != unix.EINTR && err != unix.ECONNABORTED {
				return err != unix.EAGAIN
			}
		}
	})
	if rerr != nil {
		return nil, rerr
	}
	if err != nil {
		return nil, fmt.Errorf("accept: %w", err)
	}
	return NewConn(fd)
}

// Close stops accepting; a blocked Accept returns. The socket file stays, so that a successor's bind shows who owns it.
func (l *Listener) Close() error { return l.f.Close() }

// FromError is err as it travels; stage names the step that failed.
func FromError(stage string, err error) *Error {
	return &Error{Kind: int(fault.Of(err)), Stage: stage, Text: err.Error()}
}

// Err is the error as its receiver sees it: kind restored, stage in front of the text.
func (e *Error) Err() error {
	if e == nil {
		return nil
	}
	kind := fault.Kind(e.Kind)
	if kind < fault.Unknown || kind > fault.Unsupported {
		kind = fault.Unknown
	}
	return &StageError{Stage: e.Stage, Err: fault.New(kind, "%s", e.Text)}
}

// StageError lets a caller branch on the step of init that failed ("exec" decides between exit code 127 and 126).
type StageError struct {
	Stage string
	Err   error
}

func (e *StageError) Error() string {
	if e.Stage == "" || e.Stage == StageExec {
		return e.Err.Error()
	}
	return e.Stage + ": " + e.Err.Error()
}

func (e *StageError) Unwrap() error { return e.Err }

// StageExec is the stage of errors about the program itself: kind NotFound (users know it as exit code 127) or Denied
// and Invalid (126).
const StageExec = "exec"
