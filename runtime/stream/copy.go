package stream

import (
	"context"
	"io"
	"os"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// run moves bytes between a client and a session until the process has ended and its output is read, or the client is
// gone. The client's input is not waited for: it may stay open for as long as the connection does.
func run(ctx context.Context, s Session, in io.Reader, out, errs io.Writer, resize <-chan remotecommand.TerminalSize) (int, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var outputs sync.WaitGroup
	for _, p := range []struct {
		from io.ReadCloser
		to   io.Writer
	}{{s.Stdout, out}, {s.Stderr, errs}} {
		if p.from == nil {
			continue
		}
		defer p.from.Close()
		outputs.Go(func() {
			if p.to == nil {
				p.to = io.Discard
			}
			if _, err := io.Copy(p.to, p.from); err != nil && !ptyEnd(err) {
				stop() // the client is gone
			}
		})
	}
	feed(s, in)
	if resize != nil && s.Resize != nil {
		go resizes(ctx, s, resize)
	}
	code, err := s.Wait(ctx)
	done := make(chan struct{})
	go func() { outputs.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	case <-time.After(drainLimit):
	}
	return code, err
}

// feed copies the client's input in the background; its end closes the pipe, and on a terminal types end-of-file.
func feed(s Session, in io.Reader) {
	to := s.Stdin
	if to == nil {
		to = s.Terminal
	}
	switch {
	case to == nil:
	case in == nil:
		if s.Stdin != nil {
			s.Stdin.Close()
		}
	default:
		go func() {
			io.Copy(to, in)
			if s.Stdin != nil {
				s.Stdin.Close()
				return
			}
			_, _ = s.Terminal.Write([]byte{4}) // EOT; the master itself must stay open for the output
		}()
	}
}

func resizes(ctx context.Context, s Session, resize <-chan remotecommand.TerminalSize) {
	for {
		select {
		case size, ok := <-resize:
			if !ok {
				return
			}
			if size.Width > 0 && size.Height > 0 {
				_ = s.Resize(size.Width, size.Height) // the process has just ended
			}
		case <-ctx.Done():
			return
		}
	}
}

// isNil tells a nil *os.File in an interface.
func isNil(v any) bool {
	f, ok := v.(*os.File)
	return v == nil || ok && f == nil
}
