package monitor

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A journal is one shared page that tells the next monitor how far the last one got with a container's log, should it
// be killed between any two system calls. The runtime keeps a descriptor of it, so the page outlives the monitor.
//
// Output stays in the pipe until it is in the log file:
//
//  1. look at the pipe's bytes without taking them (tee), format them with a timestamp
//  2. page: idle → pending, with file offset, byte count, timestamp; the mark differs from the last byte's value
//  3. write the log file
//  4. page: pending → written
//  5. take exactly those bytes from the pipe; the kernel stores the last one into the mark, in the same call
//  6. page: written → idle
//
// pending: the bytes are still in the pipe; format them again and write what the file lacks.
// written: take them unless the mark shows that step 5 has happened.
type journal struct {
	file *os.File
	page *page
	mem  []byte
}

// page is shared between monitors of different builds: fields are only ever appended.
type page struct {
	state    uint32
	stream   uint32
	tail     uint32 // how an unfinished line was tagged, 0 if it was left
	_        uint32
	offset   int64 // size of the log file before the write
	count    int64 // raw bytes in the pipe
	stamp    int64 // nanoseconds since 1970
	dev, ino uint64
	dropped  uint64 // records lost to a full or broken disk
	expect   byte
	mark     byte
}

const (
	idle    = 0
	pending = 1
	written = 2
)

const pageSize = 4096

func newJournal() (*journal, error) {
	fd, err := unix.MemfdCreate("worknode-journal", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	f := os.NewFile(uintptr(fd), "journal")
	if err := unix.Ftruncate(fd, pageSize); err != nil {
		f.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	return openJournal(f)
}

// openJournal takes over f.
func openJournal(f *os.File) (*journal, error) {
	var mem []byte
	var err error
	raw, cerr := f.SyscallConn()
	if cerr == nil {
		cerr = raw.Control(func(fd uintptr) {
			var st unix.Stat_t
			if err = unix.Fstat(int(fd), &st); err == nil && st.Size < pageSize {
				err = fmt.Errorf("it has %d bytes, not %d", st.Size, pageSize)
			}
			if err == nil {
				mem, err = unix.Mmap(int(fd), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			}
		})
	}
	if cerr != nil {
		err = cerr
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	return &journal{file: f, page: (*page)(unsafe.Pointer(&mem[0])), mem: mem}, nil
}

func (j *journal) close() {
	_ = unix.Munmap(j.mem)
	j.file.Close()
	j.page, j.mem = nil, nil
}

func (j *journal) state() uint32     { return atomic.LoadUint32(&j.page.state) }
func (j *journal) setState(s uint32) { atomic.StoreUint32(&j.page.state, s) }

// begin records a batch; the state changes last, by an atomic store, so that a half-filled record is never seen.
func (j *journal) begin(stream int, tail byte, at time.Time, st *unix.Stat_t, count int, last byte) {
	p := j.page
	p.stream, p.tail = uint32(stream), uint32(tail)
	p.offset, p.count, p.stamp = st.Size, int64(count), at.UnixNano()
	p.dev, p.ino = st.Dev, st.Ino
	p.expect, p.mark = last, ^last
	j.setState(pending)
}

// consumed reports whether the bytes of a written batch have left the pipe.
func (j *journal) consumed() bool { return j.page.mark == j.page.expect }

// markByte is where the kernel puts the last byte of a batch.
func (j *journal) markByte() []byte { return unsafe.Slice(&j.page.mark, 1) }
