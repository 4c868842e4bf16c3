package crilog

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"worknode/fault"
)

// lineMax bounds one line of the file. Runtimes cut records at 16 KiB; a far longer one means that this is no log.
const lineMax = 16 << 20

// Read prints the log at path to w. With Follow it goes on until ended is closed and everything is read, ctx ends, or w
// breaks; changed must then be told after each change in the log's directory (see Watcher). w is flushed whenever the
// end of the file is reached, if it is an http.Flusher.
//
// Rotation by renaming path is followed without losing a line, also when several happen while w is slow: the open
// file's name says which rotated file comes next.
// Errors: NotFound if there is no log; what w or ctx answered; otherwise what the file system said.
func Read(ctx context.Context, w io.Writer, path string, o Options, changed, ended <-chan struct{}) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "log %s does not exist", path)
	} else if err != nil {
		return err
	}
	rd := &reader{path: path, print: newPrinter(w, o), file: f}
	defer func() { _ = rd.file.Close() }() // read only, nothing to lose
	if o.Tail >= 0 {
		st, err := f.Stat()
		if err != nil {
			return err
		}
		at, err := tailStart(f, st.Size(), o.Tail, o)
		if err != nil {
			return fmt.Errorf("log %s: searching the last %d lines: %w", path, o.Tail, err)
		}
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return err
		}
	}
	rd.in = bufio.NewReaderSize(f, 32<<10)
	if o.Limit == 0 {
		return nil
	}
	if err = rd.run(ctx, o.Follow, changed, ended); errors.Is(err, errLimit) {
		err = nil
	}
	if err != nil {
		return err
	}
	return rd.print.end()
}

type reader struct {
	path  string
	print *printer
	file  *os.File
	in    *bufio.Reader
	line  []byte // the beginning of a line whose end is not written yet
}

func (r *reader) run(ctx context.Context, follow bool, changed, ended <-chan struct{}) error {
	for {
		over := !follow || closed(ended) // asked before reading: what was written until then will be read
		moved := follow && r.moved(over) // likewise
		if err := r.drain(ctx); err != nil {
			return err
		}
		if moved {
			if err := r.next(); err != nil {
				return err
			}
			continue
		}
		if over {
			return nil
		}
		if err := r.print.flush(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-ended:
		}
	}
}

// drain prints all complete lines up to the end of the file.
func (r *reader) drain(ctx context.Context) error {
	for ctx.Err() == nil {
		part, err := r.in.ReadSlice('\n')
		switch {
		case err == nil && len(r.line) == 0:
			if err := r.print.print(part[:len(part)-1]); err != nil {
				return err
			}
		case err == nil:
			r.line = append(r.line, part[:len(part)-1]...)
			err := r.print.print(r.line)
			r.line = r.line[:0]
			if err != nil {
				return err
			}
		case errors.Is(err, bufio.ErrBufferFull), errors.Is(err, io.EOF):
			if r.line = append(r.line, part...); len(r.line) > lineMax {
				return fault.New(fault.Invalid, "log %s: a line is longer than %d MiB", r.path, lineMax>>20)
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
		default:
			return fmt.Errorf("log %s: %w", r.path, err)
		}
	}
	return ctx.Err()
}

// moved reports whether another file has taken the log's name and place. Runtimes open the new file first and turn
// to it then, so only a line in it proves that nothing is added to the old one, or that the container is over.
func (r *reader) moved(over bool) bool {
	now, err := os.Stat(r.path)
	if err != nil {
		return false // between rename and reopen, or removed
	}
	mine, err := r.file.Stat()
	return err == nil && !os.SameFile(now, mine) && (over || now.Size() > 0)
}

// next opens the file that was written after the current one.
func (r *reader) next() error {
	r.line = r.line[:0] // a torn end: its writer is gone
	for range 3 {       // a candidate may be rotated or compressed while we look
		name, err := r.successor()
		if err != nil {
			return err
		}
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		var in io.Reader = f
		if strings.HasSuffix(name, ".gz") {
			if in, err = gzip.NewReader(f); err != nil {
				_ = f.Close()
				return fmt.Errorf("log %s: %w", name, err)
			}
		}
		_ = r.file.Close() // read only
		r.file = f
		r.in.Reset(in)
		return nil
	}
	return fault.New(fault.Temporary, "log %s: rotated away faster than it can be opened", r.path)
}

// successor names the oldest file that is newer than the open one: rotated ones carry their time after the log's
// name, so their order is that of their names. The kernel tells the open file's present name.
func (r *reader) successor() (string, error) {
	mine, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.file.Fd()))
	if err != nil {
		return "", fmt.Errorf("log %s: %w", r.path, err)
	}
	mine = stamp(strings.TrimSuffix(mine, " (deleted)"))
	rotated, err := filepath.Glob(globQuote(r.path) + ".*")
	if err != nil {
		return "", fmt.Errorf("log %s: %w", r.path, err)
	}
	slices.Sort(rotated)
	for _, name := range rotated {
		if stamp(name) > mine && !strings.HasSuffix(name, ".tmp") {
			return name, nil
		}
	}
	return r.path, nil
}

// stamp is a rotated file's base name without the mark of compression.
func stamp(name string) string { return strings.TrimSuffix(filepath.Base(name), ".gz") }

func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
