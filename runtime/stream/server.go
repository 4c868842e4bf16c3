// Package stream serves exec, attach and port-forward over HTTP (SPDY and WebSocket) on a loopback address. The
// protocols are k8s.io/cri-streaming's; this package moves the bytes. It knows no containers: Node opens sessions.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// Node is who opens processes and ports.
type Node interface {
	OpenExec(ctx context.Context, container string, args []string, want Want) (Session, error)
	OpenAttach(ctx context.Context, container string, want Want) (Session, error)
	Dial(ctx context.Context, sandbox string, port int32) (net.Conn, error)
}

// Want says which streams a client asked for.
type Want struct{ Stdin, Stdout, Stderr, TTY bool }

// Session is one open exec or attach; nil streams were not wanted. Terminal is set instead of Stdin when one file
// serves both directions. The session's streams are closed here.
type Session struct {
	Stdin          io.WriteCloser
	Stdout, Stderr io.ReadCloser
	Terminal       io.WriteCloser
	Resize         func(width, height uint16) error
	Wait           func(ctx context.Context) (code int, err error) // ends when the process has; a done ctx kills an exec
}

// Fill sets the streams from files that may be nil, which an interface would not show.
func (s *Session) Fill(stdin io.WriteCloser, stdout, stderr io.ReadCloser) {
	if !isNil(stdin) {
		s.Stdin = stdin
	}
	if !isNil(stdout) {
		s.Stdout = stdout
	}
	if !isNil(stderr) {
		s.Stderr = stderr
	}
}

// drainLimit is how long output is read on after the process has ended, when a child of it holds the pipe open.
const drainLimit = 10 * time.Second

// Server hands out URLs and serves them.
type Server struct {
	inner streaming.Server
	http  *http.Server
	l     net.Listener
}

// Listen opens the server on addr ("127.0.0.1:0" for any port).
func Listen(addr string, node Node) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	config := streaming.DefaultConfig
	config.Addr = l.Addr().String()
	config.BaseURL = &url.URL{Scheme: "http", Host: l.Addr().String()}
	inner, err := streaming.NewServer(config, handler{node})
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	return &Server{inner: inner, l: l, http: &http.Server{Handler: inner, ReadHeaderTimeout: 30 * time.Second}}, nil
}

// Serve answers until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.http.Close() })
	defer stop()
	if err := s.http.Serve(s.l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Exec, Attach and PortForward return a URL that is good for one use within a minute.
func (s *Server) Exec(r *cri.ExecRequest) (*cri.ExecResponse, error) { return s.inner.GetExec(r) }

// Attach is like Exec.
func (s *Server) Attach(r *cri.AttachRequest) (*cri.AttachResponse, error) {
	return s.inner.GetAttach(r)
}

// PortForward is like Exec.
func (s *Server) PortForward(r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	return s.inner.GetPortForward(r)
}

// handler is what the streaming library calls.
type handler struct{ node Node }

func (h handler) Exec(ctx context.Context, id string, args []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	s, err := h.node.OpenExec(ctx, id, args, Want{in != nil, out != nil, errs != nil, tty})
	if err != nil {
		return err
	}
	code, err := run(ctx, s, in, out, errs, resize)
	if err != nil {
		return err
	}
	if code != 0 {
		return &utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

func (h handler) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	s, err := h.node.OpenAttach(ctx, id, Want{in != nil, out != nil, errs != nil, tty})
	if err != nil {
		return err
	}
	_, err = run(ctx, s, in, out, errs, resize)
	return err
}

func (h handler) PortForward(ctx context.Context, sandbox string, port int32, client io.ReadWriteCloser) error {
	defer client.Close()
	conn, err := h.node.Dial(ctx, sandbox, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var up sync.WaitGroup
	up.Go(func() {
		io.Copy(conn, client)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
	})
	_, err = io.Copy(client, conn)
	client.Close() // ends the reader above
	up.Wait()
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("port %d: %w", port, err)
	}
	return nil
}
