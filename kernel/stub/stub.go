// Package stub makes programs of a few dozen instructions, for the two things that a Go process cannot do to itself
// because it has threads: join a user namespace, and be the first process of one while others look at it.
// The instructions are Go assembly (stub_GOARCH.s), copied out of this binary's own text into the smallest ELF file.
// Why so, and not C: docs/decisions/0002-user-namespaces.md.
package stub

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Where things lie in a stub: the headers, then what the program is told, then the program. stub_*.s knows settings.
const (
	load     = 0x400000
	headers  = 64 + 56
	settings = load + headers
	frameAt  = 64  // the error frame, from settings
	codeAt   = 512 // the program, from settings
)

// end marks the end of a program in the text of this binary; it is never run.
const end = "wnstub.\n"

// maxCode is more than any program here has, in bytes.
const maxCode = 1024

// Enter says what an entering stub does before it becomes another program with its own arguments and environment.
type Enter struct {
	Namespaces int    // descriptor: a user namespace, or the pidfd of a process whose namespaces to join
	Join       uint64 // CLONE_NEW* to join there; CLONE_NEWUSER is among them
	Clone      uint64 // if not 0: go on in a child made with these clone(2) flags, and end
	Program    int    // descriptor of the program to become
	Report     []byte // what to write to descriptor 3 on failure; the three bytes at Errno become the error number
	Errno      int
}

// EnterFile makes the program that enters. Inside it becomes user and group 0 of the user namespace.
// The file is close-on-exec and has no name; the caller closes it.
// Errors: Unsupported on an architecture without stubs.
func EnterFile(e Enter) (*os.File, error) {
	if len(e.Report) > codeAt-frameAt || e.Errno < 0 || e.Errno+3 > len(e.Report) {
		return nil, fault.New(fault.Invalid, "stub: a report of %d bytes with its error number at %d does not fit", len(e.Report), e.Errno)
	}
	area := make([]byte, codeAt)
	for i, v := range []uint64{uint64(e.Namespaces), e.Join, e.Clone, uint64(e.Program), uint64(len(e.Report)), settings + frameAt + uint64(e.Errno)} {
		binary.LittleEndian.PutUint64(area[8*i:], v)
	}
	copy(area[frameAt:], e.Report)
	return file("worknode-enter", area, enterAt())
}

// HoldFile makes the program that reads its standard input until that ends, and exits.
func HoldFile() (*os.File, error) { return file("worknode-hold", make([]byte, codeAt), holdAt()) }

func file(name string, area []byte, at unsafe.Pointer) (*os.File, error) {
	if at == nil {
		return nil, fault.New(fault.Unsupported, "user namespaces: this architecture has no stub to enter one")
	}
	text := unsafe.Slice((*byte)(at), maxCode) // the binary's text is longer than that after any function
	n := bytes.Index(text, []byte(end))
	if n <= 0 {
		return nil, fault.New(fault.Unsupported, "stub %s: its end is not found in this build", name)
	}
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("stub %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(elf(append(area, text[:n]...))); err != nil {
		f.Close()
		return nil, fmt.Errorf("stub %s: %w", name, err)
	}
	return f, nil
}

// elf wraps settings and code into one segment that may be read, written and run. Source: elf(5).
func elf(body []byte) []byte {
	le := binary.LittleEndian
	size := uint64(headers + len(body))
	b := append(make([]byte, 0, size), 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, machine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, settings+codeAt) // entry
	b = le.AppendUint64(b, 64)              // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 64, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 7)
	for _, v := range []uint64{0, load, load, size, size, 4096} {
		b = le.AppendUint64(b, v)
	}
	return append(b, body...)
}
