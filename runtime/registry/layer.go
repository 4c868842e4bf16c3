package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"worknode/fault"
)

const (
	maxLayer   = 1 << 40 // bytes of a layer as it is sent
	maxFutile  = 10      // connections in a row that bring no new byte
	minSilence = 100 * time.Millisecond
)

// Layer returns the bytes of a layer as they are stored, from its first to its last. They come over as many connections,
// from as many hosts, as it takes; the reader checks the digest and says so if it is wrong (Reject).
// ctx governs the stream until it is closed. Errors, also of Read: NotFound, Denied, Invalid, Temporary; a deadline
// when no byte came for Options.Stall.
func (r *Repository) Layer(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if d.Size <= 0 || d.Size > maxLayer {
		return nil, fault.New(fault.Invalid, "layer %s: the manifest says that it has %d bytes", d.Digest, d.Size)
	}
	s := &stream{r: r, ctx: ctx, place: "blobs/" + d.Digest.String(), size: d.Size}
	if err := s.connect(time.Now().Add(r.opt.Stall)); err != nil {
		return nil, err
	}
	return s, nil
}

// stream is one layer on its way. One goroutine reads it.
type stream struct {
	r     *Repository
	ctx   context.Context
	place string
	size  int64

	at     int64 // bytes given to the reader
	futile int   // connections since at last grew
	last   error // why the last connection ended

	// the connection at hand; body is nil without one
	body  io.ReadCloser
	from  *host
	skip  int64       // bytes to drop, as the host does not know ranges
	stop  func()      // ends the connection
	watch *time.Timer // ends it, too, unless a byte comes
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	if s.at == s.size {
		return 0, io.EOF
	}
	if int64(len(p)) > s.size-s.at {
		p = p[:s.size-s.at]
	}
	// Only the time that a reader waits counts: it may itself be slow.
	until := time.Now().Add(s.r.opt.Stall)
	for {
		if s.body == nil {
			if err := s.reconnect(until); err != nil {
				return 0, err
			}
			continue
		}
		n, err := s.read(p)
		if n > 0 {
			s.at += int64(n)
			s.futile = 0
			if s.r.opt.Read != nil {
				s.r.opt.Read(n)
			}
		}
		if err != nil {
			s.drop()
			s.last = err
		}
		if n > 0 {
			return n, nil
		}
		if s.ctx.Err() != nil {
			return 0, context.Cause(s.ctx)
		}
		if !time.Now().Before(until) {
			return 0, s.silent()
		}
	}
}

// read reads from the connection at hand, past what is to be skipped. An error, io.EOF too, ends the connection.
func (s *stream) read(p []byte) (int, error) {
	for {
		s.watch.Reset(s.silence())
		n, err := s.body.Read(p)
		if !s.watch.Stop() {
			err = fmt.Errorf("%s sent nothing for %s", s.from.url.Host, s.silence())
		} else if err == io.EOF && s.at+int64(n) < s.size {
			err = io.ErrUnexpectedEOF
		}
		if s.skip == 0 || n == 0 {
			return n, err
		}
		kept := copy(p, p[min(int64(n), s.skip):n])
		s.skip -= min(int64(n), s.skip)
		if kept > 0 || err != nil {
			return kept, err
		}
	}
}

// silence is how long one connection may be silent: a part of the whole, so that there is time to try another.
func (s *stream) silence() time.Duration { return max(s.r.opt.Stall/4, minSilence) }

// reconnect goes on at the byte where the last connection ended, after a pause if that one brought nothing. Without an
// error and without a body, it may be tried again.
func (s *stream) reconnect(until time.Time) error {
	if s.futile++; s.futile > maxFutile {
		return fault.New(fault.Temporary, "layer %s: %d connections brought nothing after byte %d of %d: %w", s.place, maxFutile, s.at, s.size, s.last)
	}
	if s.futile > 1 {
		if err := pause(s.ctx, jitter(min(firstPause<<(s.futile-2), s.r.opt.Stall/8))); err != nil {
			return err
		}
	}
	slog.Debug("layer goes on", "layer", s.place, "byte", s.at, "of", s.size, "error", s.last)
	err := s.connect(until)
	var f *failure
	switch {
	case err == nil:
		return nil
	case s.ctx.Err() != nil:
		return context.Cause(s.ctx)
	case !errors.As(err, &f) || !f.again || f.after > time.Until(until):
		return err
	}
	s.last = err
	if !time.Now().Before(until) {
		return s.silent()
	}
	return nil
}

func (s *stream) silent() error {
	return fault.New(fault.Temporary, "%s, byte %d of %d: %w", s.place, s.at, s.size, silence{s.r.opt.Stall, s.last})
}

// connect opens a connection that stands at byte s.at, on the host that served so far if it still does.
func (s *stream) connect(until time.Time) error {
	first := s.from
	if first != nil {
		if err := s.open(first); err == nil {
			return nil
		} else if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
	}
	return s.r.try(s.ctx, until, func(h *host) bool { return h.pull }, s.open)
}

// open asks one host.
func (s *stream) open(h *host) error {
	ctx, stop := context.WithCancel(s.ctx)
	reply, err := s.r.ask(ctx, h, http.MethodGet, s.place, "", s.at)
	var f *failure
	if s.at > 0 && errors.As(err, &f) && f.code == http.StatusRequestedRangeNotSatisfiable {
		// Some hosts refuse a range instead of not minding it: the whole, then, and what we have is skipped.
		reply, err = s.r.ask(ctx, h, http.MethodGet, s.place, "", 0)
	}
	if err != nil {
		stop()
		return err
	}
	skip, err := position(reply, s.at, s.size)
	if err == nil && page(reply.Header.Get("Content-Type"), nil) {
		err = errors.New("a web page came in place of a layer")
	}
	if err != nil {
		reply.Body.Close()
		stop()
		return &failure{error: fault.New(fault.Invalid, "%s: %s: %w", h.url.Host, s.place, err)}
	}
	s.body, s.from, s.skip, s.stop = reply.Body, h, skip, stop
	s.watch = time.AfterFunc(s.silence(), stop)
	s.watch.Stop() // it runs only while somebody reads
	return nil
}

// position says how many bytes come before those that were asked for.
// Source: RFC 9110 section 14: a host may answer a range with the whole.
func position(reply *http.Response, at, size int64) (skip int64, err error) {
	if reply.StatusCode == http.StatusOK {
		if n := reply.ContentLength; n >= 0 && n != size {
			return 0, fmt.Errorf("the host has %d bytes of it, the manifest says %d", n, size)
		}
		return at, nil
	}
	var from, to, whole int64
	text := reply.Header.Get("Content-Range")
	if n, _ := fmt.Sscanf(text, "bytes %d-%d/%d", &from, &to, &whole); n < 2 || from != at || to >= size || n == 3 && whole != size {
		return 0, fmt.Errorf("bytes from %d of %d were asked for, the host sends %q", at, size, text)
	}
	return 0, nil
}

func (s *stream) drop() {
	if s.body == nil {
		return
	}
	s.watch.Stop()
	s.stop() // before Close, which may wait for more
	s.body.Close()
	s.body = nil
}

// Close ends the stream.
func (s *stream) Close() error {
	s.drop()
	return nil
}

// Reject says that the content is not what the manifest names. The host that sent it is not asked again in this pull if
// there is another; true if there is.
func (s *stream) Reject() bool {
	if s.from == nil {
		return false
	}
	s.from.mu.Lock()
	s.from.bad = true
	s.from.mu.Unlock()
	for _, h := range s.r.trusted(func(h *host) bool { return h.pull }) {
		h.mu.Lock()
		bad := h.bad
		h.mu.Unlock()
		if !bad {
			return true
		}
	}
	return false
}
