package link

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// batch holds netlink messages that travel in one sendmsg. The kernel works through them in order and acknowledges each,
// whether or not an earlier one was refused. Source: netlink(7), rtnetlink(7).
type batch struct {
	buf   []byte
	start int      // offset of the message being written
	what  []string // what each message was to do, for the error
}

// begin starts a message and its fixed part; the attributes follow.
func (b *batch) begin(what string, kind uint16, flags uint16, fixed []byte) {
	b.end()
	b.start = len(b.buf)
	b.what = append(b.what, what)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, 0) // length, filled by end
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, flags|unix.NLM_F_REQUEST)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, 0) // sequence number, filled by send
	b.buf = binary.NativeEndian.AppendUint32(b.buf, 0) // port: the kernel knows it
	b.buf = append(b.buf, fixed...)
}

func (b *batch) end() {
	if len(b.buf) > b.start {
		binary.NativeEndian.PutUint32(b.buf[b.start:], uint32(len(b.buf)-b.start))
	}
}

// attr appends one attribute, padded to four bytes.
func (b *batch) attr(kind uint16, value []byte) {
	b.buf = binary.NativeEndian.AppendUint16(b.buf, uint16(4+len(value)))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = append(b.buf, value...)
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
}

func (b *batch) text(kind uint16, s string)  { b.attr(kind, append([]byte(s), 0)) }
func (b *batch) u32(kind uint16, v uint32)   { b.attr(kind, binary.NativeEndian.AppendUint32(nil, v)) }
func (b *batch) u8(kind uint16, v uint8)     { b.attr(kind, []byte{v}) }
func (b *batch) nest(kind uint16, fn func()) { b.nestAfter(kind, nil, fn) }

// nestAfter writes a nested attribute whose attributes follow a fixed part.
func (b *batch) nestAfter(kind uint16, fixed []byte, fn func()) {
	at := len(b.buf)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, 0)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = append(b.buf, fixed...)
	fn()
	binary.NativeEndian.PutUint16(b.buf[at:], uint16(len(b.buf)-at))
}

// linkHeader is struct ifinfomsg; up asks for IFF_UP.
func linkHeader(index int, up bool) []byte {
	h := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(h[4:], uint32(index))
	if up {
		binary.NativeEndian.PutUint32(h[8:], unix.IFF_UP)
		binary.NativeEndian.PutUint32(h[12:], unix.IFF_UP)
	}
	return h
}

// attributes calls fn for each attribute in data; a malformed tail ends the walk.
func attributes(data []byte, fn func(kind uint16, value []byte)) {
	for len(data) >= 4 {
		n := int(binary.NativeEndian.Uint16(data))
		if n < 4 || n > len(data) {
			return
		}
		fn(binary.NativeEndian.Uint16(data[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), data[4:n])
		data = data[min((n+3)&^3, len(data)):]
	}
}

// answer turns the payload of an NLMSG_ERROR into an error; nil is an acknowledgement.
func answer(what string, payload []byte, capped bool) error {
	if len(payload) < 4+unix.SizeofNlMsghdr {
		return fmt.Errorf("%s: the kernel's answer is cut short", what)
	}
	code := int32(binary.NativeEndian.Uint32(payload))
	if code == 0 {
		return nil
	}
	errno := unix.Errno(-code)
	rest := payload[4+unix.SizeofNlMsghdr:]
	if !capped {
		n := int(binary.NativeEndian.Uint32(payload[4:])) - unix.SizeofNlMsghdr
		rest = rest[min(max((n+3)&^3, 0), len(rest)):]
	}
	detail := ""
	attributes(rest, func(kind uint16, value []byte) {
		if kind == unix.NLMSGERR_ATTR_MSG {
			detail = " (" + unix.ByteSliceToString(value) + ")"
		}
	})
	return fault.New(kindOf(errno), "%s: %w%s", what, errno, detail)
}

func kindOf(err error) fault.Kind {
	switch {
	case errors.Is(err, unix.EEXIST):
		return fault.Exists
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENETUNREACH):
		return fault.NotFound
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fault.Denied
	case errors.Is(err, unix.EBUSY):
		return fault.Busy
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENFILE), errors.Is(err, unix.EMFILE):
		return fault.Exhausted
	case errors.Is(err, unix.EOPNOTSUPP):
		return fault.Unsupported
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		return fault.Invalid
	}
	return fault.Unknown
}
