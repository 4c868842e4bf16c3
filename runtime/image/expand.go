package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Bounds on zstd's history, in bytes; a decoder keeps that much in memory.
const (
	maxWindow = 128 << 20 // the most that zstd's own tools write (--long, --ultra -22)
	narrow    = 8 << 20   // up to here any number of decoders may run. Source: RFC 8878 section 3.1.1.1.2, what all support
)

// expand recognises gzip and zstd by their first bytes; packed says that it found one. closer frees the decoder.
// Of decoders with a large window there is one at a time: it waits for its turn, and for ctx.
func (s *Store) expand(ctx context.Context, r io.Reader) (plain io.Reader, closer func(), packed bool, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(zstd.HeaderMaxSize)
	if err != nil && err != io.EOF {
		return nil, nil, false, err
	}
	switch h := string(head); {
	case strings.HasPrefix(h, "\x1f\x8b"):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, false, fmt.Errorf("gzip: %w", err)
		}
		return z, func() { z.Close() }, true, nil
	case isZstd(h):
		plain, closer, err := s.zstd(ctx, br, head)
		if err != nil {
			return nil, nil, false, fmt.Errorf("zstd: %w", err)
		}
		return plain, closer, true, nil
	case strings.HasPrefix(h, "BZh"), strings.HasPrefix(h, "\xfd7zXZ"):
		return nil, nil, false, errors.New("compressed by bzip2 or xz; images may use gzip, zstd or nothing")
	}
	return br, func() {}, false, nil
}

// isZstd knows a frame, and one that is to be skipped. Source: RFC 8878 section 3.1.
func isZstd(head string) bool {
	return strings.HasPrefix(head, "\x28\xb5\x2f\xfd") || len(head) >= 4 && head[0]&0xf0 == 0x50 && head[1:4] == "\x2a\x4d\x18"
}

func (s *Store) zstd(ctx context.Context, r io.Reader, head []byte) (io.Reader, func(), error) {
	window, release := uint64(narrow), func() {}
	if window < windowOf(head) {
		select {
		case s.wide <- struct{}{}:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
		window, release = maxWindow, func() { <-s.wide }
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
	if err != nil {
		release()
		return nil, nil, err
	}
	return z, func() { z.Close(); release() }, nil
}

// windowOf is the history that the first frame asks for; the most if it does not say so here.
func windowOf(head []byte) uint64 {
	var h zstd.Header
	if err := h.Decode(head); err != nil || h.Skippable {
		return maxWindow
	}
	if h.SingleSegment {
		return h.FrameContentSize
	}
	return h.WindowSize
}
