package crilog

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"time"
)

// joinMax bounds how much of one line is held back to join its records; beyond it the line is printed as it comes.
const joinMax = 1 << 20

var errLimit = errors.New("limit reached")

// printer turns records into the lines that a reader sees.
type printer struct {
	Options
	to     io.Writer
	out    *bufio.Writer
	left   int64
	open   [2][]byte // per stream: the begun line, with its time if wanted
	opened [2]bool   // whether a line is begun (its beginning may be printed already)
}

func newPrinter(w io.Writer, o Options) *printer {
	left := o.Limit
	if left < 0 {
		left = 1<<63 - 1
	}
	return &printer{Options: o, to: w, out: bufio.NewWriterSize(w, 16<<10), left: left}
}

// print takes one line of the file. It returns errLimit when the limit is reached.
func (p *printer) print(line []byte) error {
	r, ok := parse(line)
	if !ok || !p.wants(r) {
		return nil
	}
	if !p.Since.IsZero() {
		if r.before(p.Since) {
			return nil
		}
		p.Since = time.Time{} // times only grow, so the rest need not be parsed
	}
	s := 0
	if r.stderr {
		s = 1
	}
	if !p.opened[s] && p.Timestamps {
		p.open[s] = append(append(p.open[s], r.when...), ' ')
	}
	p.opened[s] = r.partial
	if r.partial && len(p.open[s])+len(r.text) < joinMax {
		p.open[s] = append(p.open[s], r.text...)
		return nil
	}
	if err := p.flushOpen(s); err != nil {
		return err
	}
	if err := p.write(r.text); err != nil || r.partial {
		return err
	}
	return p.write([]byte{'\n'})
}

func (p *printer) flushOpen(s int) error {
	if len(p.open[s]) == 0 {
		return nil
	}
	err := p.write(p.open[s])
	p.open[s] = p.open[s][:0]
	if cap(p.open[s]) > 64<<10 {
		p.open[s] = nil
	}
	return err
}

func (p *printer) write(b []byte) error {
	if int64(len(b)) > p.left {
		b = b[:p.left]
	}
	p.left -= int64(len(b))
	if _, err := p.out.Write(b); err != nil {
		return err
	}
	if p.left == 0 {
		return errLimit
	}
	return nil
}

// flush brings everything complete to the reader.
func (p *printer) flush() error {
	if err := p.out.Flush(); err != nil {
		return err
	}
	if f, ok := p.to.(http.Flusher); ok {
		f.Flush()
	}
	return nil
}

// end prints lines that never got their end and flushes.
func (p *printer) end() error {
	for s := range p.open {
		if err := p.flushOpen(s); err != nil && !errors.Is(err, errLimit) {
			return err
		}
	}
	return p.flush()
}
