package monitor

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A logfile is one container's log in CRI format. Both streams of the container share it; mu makes one batch at a
// time, so at most one thread per container waits for a slow disk.
type logfile struct {
	id string

	mu      sync.Mutex
	path    string // empty: output is drained and dropped
	file    *os.File
	journal *journal // nil for terminals and without a path
	losing  bool     // the last write failed; says so once
}

func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("log file: %w", err)
	}
	return f, nil
}

// reopen goes on in a new file at the same path. When it returns, no further byte goes to the old one.
func (l *logfile) reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.path == "" {
		return nil
	}
	f, err := openLog(l.path)
	if err != nil {
		return err
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file = f
	return nil
}

func (l *logfile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	if l.journal != nil {
		l.journal.close()
		l.journal = nil
	}
}

// commit moves one batch from a pipe to the log: data are the pipe's first bytes, out the records made of them with
// the time at. It returns when they are out of the pipe. See journal for why in this order.
func (l *logfile) commit(pipe int, stream int, at time.Time, data, out []byte, tail byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil || l.journal == nil {
		l.write(out)
		return consume(pipe, data, nil)
	}
	var st unix.Stat_t
	if err := l.stat(&st); err != nil {
		return err
	}
	l.journal.begin(stream, tail, at, &st, len(data), data[len(data)-1])
	l.write(out)
	l.journal.setState(written)
	err := consume(pipe, data, l.journal.markByte())
	l.journal.setState(idle)
	return err
}

// trim cuts a record that its writer did not finish off the end of the file. It is for a log whose journal is lost:
// the record's bytes are still in the pipe and will be written again.
func (l *logfile) trim() {
	f, err := os.OpenFile(l.path, os.O_RDWR, 0)
	if err != nil {
		return // nothing was written, or nothing can be
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return
	}
	tail := make([]byte, min(end, 4*lineLimit)) // a record is one line of at most lineLimit bytes and a header
	if _, err := f.ReadAt(tail, end-int64(len(tail))); err != nil {
		return
	}
	if torn := len(tail) - 1 - bytes.LastIndexByte(tail, '\n'); torn > 0 {
		_ = f.Truncate(end - int64(torn))
	}
}

func (l *logfile) stat(st *unix.Stat_t) error {
	var err error
	raw, cerr := l.file.SyscallConn()
	if cerr == nil {
		cerr = raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), st) })
	}
	if cerr != nil {
		return cerr
	}
	return err
}

// write appends records. A full or broken disk costs the records, never the container: they are dropped whole, cut
// back to the last record's end, and counted. The caller holds mu.
func (l *logfile) write(out []byte) {
	if l.file == nil {
		return
	}
	n, err := l.file.Write(out)
	if err == nil {
		if l.losing {
			slog.Info("log is written again", "id", l.id, "path", l.path)
		}
		l.losing = false
		return
	}
	if n > 0 {
		if end, serr := l.file.Seek(0, io.SeekEnd); serr == nil {
			_ = l.file.Truncate(end - int64(n))
		}
	}
	if l.journal != nil {
		l.journal.page.dropped++
	}
	if !l.losing {
		l.losing = true
		slog.Error("log records are lost; the container runs on", "id", l.id, "path", l.path, "error", err)
	}
}

// consume takes len(data) bytes from the pipe, which is known to hold them. The last one lands in mark.
// The kernel copies and removes them in one go: a kill finds either all of them taken, or none.
func consume(pipe int, data, mark []byte) error {
	body := data
	var vec [][]byte
	if mark != nil {
		body = data[:len(data)-1]
	}
	if len(body) > 0 {
		vec = append(vec, body)
	}
	if mark != nil {
		vec = append(vec, mark)
	}
	for {
		n, err := unix.Readv(pipe, vec)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("take %d bytes from the pipe: %w", len(data), err)
		}
		if n != len(data) {
			return fmt.Errorf("took %d bytes from the pipe, it held %d: somebody else reads it", n, len(data))
		}
		return nil
	}
}

// recoverBatch ends what a killed monitor had begun with this log. pipes are the read ends by stream.
func (l *logfile) recoverBatch(pipes [2]*os.File) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.journal == nil || l.journal.state() == idle {
		return nil
	}
	p := l.journal.page
	stream := int(p.stream)
	if stream > 1 || p.count <= 0 || p.count > teeSize || pipes[stream] == nil {
		l.journal.setState(idle)
		return fmt.Errorf("log journal of %s: record of %d bytes on stream %d makes no sense, ignored", l.id, p.count, stream)
	}
	raw, err := pipes[stream].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = l.finish(int(fd), stream) })
	if err == nil {
		err = inner
	}
	return err
}

func (l *logfile) finish(pipe, stream int) error {
	p := l.journal.page
	if l.journal.state() == written && l.journal.consumed() {
		l.journal.setState(idle)
		return nil
	}
	w, err := takeWork()
	if err != nil {
		return err
	}
	defer w.give()
	data, err := w.peek(pipe, int(p.count))
	if err != nil || len(data) < int(p.count) {
		l.journal.setState(idle)
		return fmt.Errorf("log journal of %s: the pipe holds %d of %d recorded bytes: %v", l.id, len(data), p.count, err)
	}
	if l.journal.state() == pending {
		out, _ := format(w.out[:0], data, stream, time.Unix(0, p.stamp), byte(p.tail))
		w.out = out
		l.complete(out)
		l.journal.setState(written)
	}
	err = consume(pipe, data, l.journal.markByte())
	l.journal.setState(idle)
	return err
}

// complete writes the part of out that the killed monitor did not. The file may have been renamed meanwhile by
// whoever rotates logs: its inode tells, and the rest of a torn record goes to its beginning's file.
func (l *logfile) complete(out []byte) {
	p := l.journal.page
	target := l.file
	var st unix.Stat_t
	if err := l.stat(&st); err != nil || st.Dev != p.dev || st.Ino != p.ino {
		if old := findInode(filepath.Dir(l.path), p.dev, p.ino); old != nil {
			defer old.Close()
			target = old
		} else {
			l.write(out)
			return
		}
	}
	end, err := target.Seek(0, io.SeekEnd)
	if err != nil {
		l.write(out)
		return
	}
	have := end - p.offset
	switch {
	case have < 0: // cut short by somebody: nothing of the batch is there
		have = 0
	case have > int64(len(out)): // somebody else appended: the batch was written before that
		return
	}
	if _, err := target.Write(out[have:]); err != nil {
		slog.Error("log records are lost; the container runs on", "id", l.id, "path", l.path, "error", err)
	}
}

func findInode(dir string, dev, ino uint64) *os.File {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range list {
		var st unix.Stat_t
		name := filepath.Join(dir, e.Name())
		if unix.Lstat(name, &st) == nil && st.Dev == dev && st.Ino == ino {
			if f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0); err == nil {
				return f
			}
		}
	}
	return nil
}
