package image

import (
	"context"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"worknode/task"
)

const (
	chunkSize = 128 << 10
	chunks    = 4 // per layer
)

// ahead reads a stream in a task of its own and hashes it in another, so that one large layer keeps several processors
// busy: decompressing, hashing and writing. Its memory is chunks × chunkSize.
type ahead struct {
	full chan *chunk // to the reader; closed after the last
	free chan *chunk
	have *chunk
	at   int
	err  error // why the stream ended; set before full is closed
	sum  chan struct{}
}

type chunk struct {
	data  []byte
	n     int
	users atomic.Int32 // the reader and the hash
}

// readAhead reads r until its end or the tasks'. h may be nil.
func readAhead(tasks *task.Group, r io.Reader, h hash.Hash) *ahead {
	a := &ahead{full: make(chan *chunk, chunks), free: make(chan *chunk, chunks), sum: make(chan struct{})}
	for range chunks {
		a.free <- &chunk{data: make([]byte, chunkSize)}
	}
	hashing := make(chan *chunk, chunks)
	done := tasks.Context().Done()
	tasks.Go("read layer", func(ctx context.Context) {
		defer close(a.full)
		defer close(hashing)
		defer func() {
			if p := recover(); p != nil { // decoders read what strangers wrote
				a.err = fmt.Errorf("decoding panicked: %v", p)
			}
		}()
		for {
			var c *chunk
			select {
			case c = <-a.free:
			case <-done:
				a.err = ctx.Err()
				return
			}
			n, err := fill(r, c.data)
			c.n = n
			c.users.Store(2)
			if n > 0 {
				a.full <- c // there is room for all
				hashing <- c
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				a.err = err
				return
			}
		}
	})
	tasks.Go("hash layer", func(context.Context) {
		defer close(a.sum)
		for c := range hashing {
			h.Write(c.data[:c.n])
			a.release(c)
		}
	})
	return a
}

// fill is io.ReadFull that keeps the reader's own error: an archive that is cut short is no end.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

func (a *ahead) release(c *chunk) {
	if c.users.Add(-1) == 0 {
		a.free <- c
	}
}

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	for a.have == nil {
		c, ok := <-a.full
		if !ok {
			if a.err != nil {
				return 0, a.err
			}
			return 0, io.EOF
		}
		a.have, a.at = c, 0
	}
	n := copy(p, a.have.data[a.at:a.have.n])
	if a.at += n; a.at == a.have.n {
		a.release(a.have)
		a.have = nil
	}
	return n, nil
}
