package nft

// Type is a field of a key or value, as `nft list` names and prints it.
type Type struct {
	id   uint32 // nft's own number; the kernel only stores it for the reader
	size uint32 // bytes, before padding
}

// Source: nftables src/include/datatype.h, enum datatypes; the kernel gives them back to `nft list` unread.
var (
	TypeIPv4  = Type{7, 4}
	TypeIPv6  = Type{8, 16}
	TypeProto = Type{12, 1}
	TypePort  = Type{13, 2}
	// TypeMark stands for any 32-bit number in host order. Plain integers would need nft's "typeof" user data to be
	// listed, and nft 1.0.6 is easily upset by that.
	TypeMark = Type{19, 4}
)

// concat returns the number nft gives to a concatenation (six bits a field) and its length in bytes.
func concat(fields []Type) (id, size uint32) {
	if len(fields) == 1 {
		return fields[0].id, fields[0].size
	}
	for _, f := range fields {
		id = id<<6 | f.id
		size += uint32(align4(int(f.size)))
	}
	return id, size
}

// What x/sys has no names for. Source: linux 6.18 nf_tables.h.
const (
	tableUserdata     = 6  // NFTA_TABLE_USERDATA, kernel 5.10
	setElemKeyEnd     = 10 // NFTA_SET_ELEM_KEY_END, kernel 5.6
	setConcat         = 0x80
	setDescConcat     = 2 // NFTA_SET_DESC_CONCAT
	setFieldLen       = 1 // NFTA_SET_FIELD_LEN
	msgDestroySetElem = 30
)

// commentData wraps a comment as nft does: one type byte (0), one length byte, the text and its NUL.
func commentData(s string) []byte {
	if len(s) > 128 {
		s = s[:128]
	}
	return append([]byte{0, byte(len(s) + 1)}, s+"\x00"...)
}

func commentText(b []byte) string {
	if len(b) < 3 || b[0] != 0 || int(b[1]) > len(b)-2 {
		return ""
	}
	return Attr{Data: b[2 : 2+int(b[1])]}.str()
}
