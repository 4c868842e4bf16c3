package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Handle is one rtnetlink socket. It acts on the net namespace of the thread that opened it, for as long as it lives,
// whichever thread uses it later. It may be used from several goroutines; calls take turns.
type Handle struct {
	mu  sync.Mutex
	fd  int
	seq uint32
}

// Open returns a Handle on the calling thread's net namespace. Close it when done.
func Open() (*Handle, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fault.New(kindOf(err), "open rtnetlink: %w", err)
	}
	// Both options only better the error texts (CAP_ACK keeps our own message out of the answer), so refusal is no matter.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	tv := unix.NsecToTimeval(int64(10e9)) // the kernel answers at once; this bounds a bug, not a wait
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	return &Handle{fd: fd}, nil
}

// Close releases the socket. Repeat: safe.
func (h *Handle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	fd := h.fd
	if h.fd = -1; fd < 0 {
		return nil
	}
	return os.NewSyscallError("close", unix.Close(fd))
}

// do sends the batch and waits for every acknowledgement. All messages are tried; the first refusal is returned.
func (h *Handle) do(b *batch) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	first, err := h.send(b)
	if err != nil {
		return err
	}
	var refused error
	for left := len(b.what); left > 0; {
		err := h.receive(func(m message) error {
			i := int(m.seq - first)
			if m.kind != unix.NLMSG_ERROR || i < 0 || i >= len(b.what) {
				return nil
			}
			left--
			if err := answer(b.what[i], m.payload, m.flags&unix.NLM_F_CAPPED != 0); err != nil && refused == nil {
				refused = err
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", b.what[0], err)
		}
	}
	return refused
}

// dump sends the batch's one message and calls fn for every object in the answer.
// A dump that a concurrent change made inconsistent is repeated: fn must accept an object twice.
func (h *Handle) dump(b *batch, fn func(payload []byte)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for range 10 {
		torn, err := h.dumpOnce(b, fn)
		if err != nil || !torn {
			return err
		}
	}
	return fault.New(fault.Temporary, "%s: the list changed during every one of ten readings", b.what[0])
}

func (h *Handle) dumpOnce(b *batch, fn func(payload []byte)) (torn bool, err error) {
	seq, err := h.send(b)
	if err != nil {
		return false, err
	}
	for done := false; !done; {
		err := h.receive(func(m message) error {
			if m.seq != seq {
				return nil
			}
			torn = torn || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.kind {
			case unix.NLMSG_DONE:
				done = true
			case unix.NLMSG_ERROR:
				done = true
				return answer(b.what[0], m.payload, m.flags&unix.NLM_F_CAPPED != 0)
			default:
				fn(m.payload)
			}
			return nil
		})
		if err != nil {
			return false, err
		}
	}
	return torn, nil
}

// send numbers the messages and sends them; the caller holds mu.
func (h *Handle) send(b *batch) (first uint32, err error) {
	b.end()
	first = h.seq + 1
	for at := 0; at < len(b.buf); {
		h.seq++
		binary.NativeEndian.PutUint32(b.buf[at+8:], h.seq)
		at += int(binary.NativeEndian.Uint32(b.buf[at:]))
	}
	if err := unix.Sendto(h.fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fault.New(kindOf(err), "%s: send to the kernel: %w", b.what[0], err)
	}
	return first, nil
}

type message struct {
	kind, flags uint16
	seq         uint32
	payload     []byte
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// receive reads one datagram and calls fn for its messages; the first error of fn ends the walk.
func (h *Handle) receive(fn func(message) error) error {
	p := buffers.Get().(*[]byte)
	defer buffers.Put(p)
	n, _, err := unix.Recvfrom(h.fd, *p, 0)
	for errors.Is(err, unix.EINTR) {
		n, _, err = unix.Recvfrom(h.fd, *p, 0)
	}
	if err != nil {
		return fault.New(fault.Temporary, "read the kernel's answer: %w", err)
	}
	for data := (*p)[:n]; len(data) >= unix.SizeofNlMsghdr; {
		size := int(binary.NativeEndian.Uint32(data))
		if size < unix.SizeofNlMsghdr || size > len(data) {
			return fmt.Errorf("the kernel's answer is cut short")
		}
		m := message{
			kind:    binary.NativeEndian.Uint16(data[4:]),
			flags:   binary.NativeEndian.Uint16(data[6:]),
			seq:     binary.NativeEndian.Uint32(data[8:]),
			payload: data[unix.SizeofNlMsghdr:size],
		}
		if err := fn(m); err != nil {
			return err
		}
		data = data[min((size+3)&^3, len(data)):]
	}
	return nil
}
