package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"worknode/fault"
)

// The log is a sequence of records:
//
//	magic    4 bytes, so that reading can go on behind a damaged record
//	length   4 bytes, little endian, of the body
//	checksum 4 bytes, CRC-32C of length and body
//	body     op, version, kind, namespace, name, protobuf
//
// A record is written with one write call. A crash can only tear the last one.
const (
	logFile      = "objects.log"
	headerSize   = 12
	maxRecord    = 8 << 20 // beyond any object that the API lets in
	versionBlock = 100_000
	compactAfter = 1 << 20
)

var (
	magic      = [4]byte{0xD7, 'w', 'n', '1'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	errClosed  = errors.New("the store is closed")
)

type op byte

const (
	opPut     op = 'p'
	opDelete  op = 'd'
	opReserve op = 'r' // versions up to rv may have been handed out
)

type record struct {
	op              op
	rv              uint64
	resource        *Resource
	namespace, name string
	object          []byte
}

type journal struct {
	path    string
	f       *os.File
	size    int64  // up to here the file is whole
	base    int64  // size after the last compaction
	ceiling uint64 // versions below it are promised
	buf     []byte

	// While a compaction writes the new file beside, records go to the old file and here.
	compacting bool
	pending    []byte
	fresh      *os.File
}

// openJournal reads the log, gives every record to restore and drops a torn end.
func openJournal(dir string, restore func(record)) (*journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Hint(fmt.Errorf("folder for objects: %w", err), "choose a writable --root")
	}
	j := &journal{path: filepath.Join(dir, logFile)}
	f, err := os.OpenFile(j.path, os.O_CREATE|os.O_RDWR, 0o600) // 0600: Secrets
	if err != nil {
		return nil, fault.Hint(fmt.Errorf("log of objects: %w", err), "choose a writable --root")
	}
	j.f = f
	if err := j.read(restore); err != nil {
		f.Close()
		return nil, fmt.Errorf("read log of objects %s: %w", j.path, err)
	}
	// A compaction that a crash cut short.
	if err := os.Remove(j.path + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.Warn("left-over of a compaction stays", "err", err)
	}
	return j, nil
}

// read takes the whole file at once: compaction keeps it within a few times of what is live.
func (j *journal) read(restore func(record)) error {
	data, err := io.ReadAll(j.f)
	if err != nil {
		return err
	}
	whole := 0 // end of the last sound record
	for at := 0; at < len(data); {
		rec, n, ok := parseRecord(data[at:])
		if !ok {
			skip := bytes.Index(data[at+1:], magic[:])
			if skip < 0 {
				break
			}
			at += 1 + skip
			continue
		}
		if at > whole {
			slog.Error("log of objects is damaged, going on behind it: one object may be back in an older state", "log", j.path, "offset", whole, "bytes", at-whole)
		}
		at += n
		whole = at
		if rec.op == opReserve {
			j.ceiling = max(j.ceiling, rec.rv)
		} else {
			restore(rec)
		}
	}
	if whole < len(data) {
		slog.Warn("dropping the torn end of the log of objects", "log", j.path, "bytes", len(data)-whole)
		if err := j.f.Truncate(int64(whole)); err != nil {
			return err
		}
	}
	j.size, j.base = int64(whole), int64(whole)
	_, err = j.f.Seek(j.size, io.SeekStart)
	return err
}

// parseRecord reads the record that data begins with and says how long it is.
func parseRecord(data []byte) (rec record, n int, ok bool) {
	if len(data) < headerSize || !bytes.Equal(data[:4], magic[:]) {
		return rec, 0, false
	}
	length := int(binary.LittleEndian.Uint32(data[4:]))
	if length > maxRecord || len(data) < headerSize+length {
		return rec, 0, false
	}
	n = headerSize + length
	if checksum(data[4:8], data[headerSize:n]) != binary.LittleEndian.Uint32(data[8:]) {
		return rec, 0, false
	}
	rec, ok = parseBody(data[headerSize:n])
	return rec, n, ok
}

func parseBody(b []byte) (rec record, ok bool) {
	if len(b) == 0 {
		return rec, false
	}
	rec.op, b = op(b[0]), b[1:]
	var n int
	if rec.rv, n = binary.Uvarint(b); n <= 0 {
		return rec, false
	}
	b = b[n:]
	if rec.op == opReserve {
		return rec, true
	}
	var words [4]string
	for i := range words {
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return rec, false
		}
		words[i], b = string(b[n:n+int(size)]), b[n+int(size):]
	}
	rec.namespace, rec.name, rec.object = words[2], words[3], b
	for _, r := range All {
		if r.Group == words[0] && r.Name == words[1] {
			rec.resource = r
		}
	}
	return rec, rec.resource != nil && (rec.op == opPut || rec.op == opDelete)
}

func appendRecord(b []byte, rec record) []byte {
	start := len(b)
	b = append(b, magic[:]...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, byte(rec.op))
	b = binary.AppendUvarint(b, rec.rv)
	if rec.op != opReserve {
		for _, word := range [...]string{rec.resource.Group, rec.resource.Name, rec.namespace, rec.name} {
			b = binary.AppendUvarint(b, uint64(len(word)))
			b = append(b, word...)
		}
		b = append(b, rec.object...)
	}
	body := b[start+headerSize:]
	binary.LittleEndian.PutUint32(b[start+4:], uint32(len(body)))
	binary.LittleEndian.PutUint32(b[start+8:], checksum(b[start+4:start+8], body))
	return b
}

func checksum(length, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(length, castagnoli), castagnoli, body)
}

// append writes one record. After an error the file ends where it ended before.
func (j *journal) append(rec record) error {
	j.buf = appendRecord(j.buf[:0], rec)
	if j.compacting {
		j.pending = append(j.pending, j.buf...)
	}
	n, err := j.f.Write(j.buf)
	if cap(j.buf) > 64<<10 {
		j.buf = nil
	}
	if err != nil {
		if n > 0 {
			err = errors.Join(err, j.f.Truncate(j.size))
		}
		_, seek := j.f.Seek(j.size, io.SeekStart)
		return errors.Join(err, seek)
	}
	j.size += int64(n)
	return nil
}

// reserve promises the versions below ceiling, on disk first.
func (j *journal) reserve(ceiling uint64) error {
	j.ceiling = ceiling
	return j.append(record{op: opReserve, rv: ceiling})
}

func (j *journal) grown() bool { return !j.compacting && j.size > 2*j.base+compactAfter }

// begin, write and finish are the three steps of a compaction; begin and finish run under the store's lock.
func (j *journal) begin(ceiling uint64) []byte {
	j.compacting, j.pending = true, nil
	j.ceiling = max(j.ceiling, ceiling)
	return appendRecord(nil, record{op: opReserve, rv: j.ceiling})
}

func (j *journal) write(image []byte) error {
	f, err := os.OpenFile(j.path+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(image); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	j.fresh = f
	return nil
}

func (j *journal) finish(err error) error {
	fresh, pending := j.fresh, j.pending
	j.compacting, j.pending, j.fresh = false, nil, nil
	if err != nil {
		return err
	}
	if _, err = fresh.Write(pending); err == nil {
		err = os.Rename(fresh.Name(), j.path)
	}
	var size int64
	if err == nil {
		size, err = fresh.Seek(0, io.SeekCurrent)
	}
	if err != nil {
		return errors.Join(err, fresh.Close(), os.Remove(fresh.Name()))
	}
	j.f.Close()
	j.f, j.size, j.base = fresh, size, size
	return nil
}

func (j *journal) close() error { return errors.Join(j.f.Sync(), j.f.Close()) }
