package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// encoder appends netlink attributes to one growing buffer. Lengths of nested attributes are patched when they close,
// so nothing is encoded twice or copied.
type encoder struct{ b []byte }

func align4(n int) int { return (n + 3) &^ 3 }

func (e *encoder) pad() {
	for len(e.b)&3 != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) head(typ uint16, payload int) {
	e.b = binary.NativeEndian.AppendUint16(e.b, uint16(4+payload))
	e.b = binary.NativeEndian.AppendUint16(e.b, typ)
}

func (e *encoder) bytes(typ uint16, v []byte) {
	e.head(typ, len(v))
	e.b = append(e.b, v...)
	e.pad()
}

// str writes a NUL-terminated string.
func (e *encoder) str(typ uint16, v string) {
	e.head(typ, len(v)+1)
	e.b = append(e.b, v...)
	e.b = append(e.b, 0)
	e.pad()
}

// u32 writes a number in network order, as nearly all of nftables' numbers are.
func (e *encoder) u32(typ uint16, v uint32) {
	e.head(typ, 4)
	e.b = binary.BigEndian.AppendUint32(e.b, v)
}

// open starts a nested attribute and returns the mark that close needs.
func (e *encoder) open(typ uint16) int {
	at := len(e.b)
	e.head(typ|unix.NLA_F_NESTED, 0)
	return at
}

func (e *encoder) close(at int) {
	binary.NativeEndian.PutUint16(e.b[at:], uint16(len(e.b)-at))
}

// value writes a data attribute that holds plain bytes.
func (e *encoder) value(typ uint16, v []byte) {
	e.head(typ|unix.NLA_F_NESTED, 4+align4(len(v)))
	e.bytes(unix.NFTA_DATA_VALUE, v)
}

// verdict writes a data attribute that holds a verdict.
func (e *encoder) verdict(typ uint16, v Verdict) {
	data := e.open(typ)
	in := e.open(unix.NFTA_DATA_VERDICT)
	e.u32(unix.NFTA_VERDICT_CODE, uint32(v.Code))
	if v.Chain != "" {
		e.str(unix.NFTA_VERDICT_CHAIN, v.Chain)
	}
	e.close(in)
	e.close(data)
}

// Attr is one netlink attribute as read: its type without flags, and its payload, which aliases the read buffer.
type Attr struct {
	Type uint16
	Data []byte
}

// typeMask strips the nested and byte-order flags.
const typeMask = 0x3fff

// Attrs walks the attributes in b. Malformed lengths end the walk: the kernel wrote b, and a short answer is safer
// than a panic.
func Attrs(b []byte, each func(Attr)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		each(Attr{binary.NativeEndian.Uint16(b[2:]) & typeMask, b[4:n]})
		if n = align4(n); n > len(b) {
			return
		}
		b = b[n:]
	}
}

func (a Attr) be32() uint32 {
	if len(a.Data) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a.Data)
}

func (a Attr) str() string {
	d := a.Data
	for len(d) > 0 && d[len(d)-1] == 0 {
		d = d[:len(d)-1]
	}
	return string(d)
}
