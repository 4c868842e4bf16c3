// Package stream serves exec, attach and port-forward over HTTP on a loopback address. SPDY and the older WebSocket
// protocols are k8s.io/cri-streaming's; WebSocket v5, which today's clients ask for first, is ours (websocket.go), so
// that whoever stands between only passes bytes on. It knows no containers: Node opens sessions.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"worknode/fault"
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

const (
	drainLimit  = 10 * time.Second // how long output is read on after the process has ended, when a child of it holds the pipe open
	idleLimit   = 4 * time.Hour    // a connection without a byte in either direction, as other CRI runtimes have it
	createLimit = 30 * time.Second // for a SPDY client to open its streams
)

// Server hands out URLs and serves them.
type Server struct {
	node  Node
	http  *http.Server
	l     net.Listener
	slips slips
}

// Listen opens the server on addr ("127.0.0.1:0" for any port).
func Listen(addr string, node Node) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fault.Hint(fault.New(fault.Busy, "streaming server: %w", err), "choose another streaming address")
	}
	s := &Server{node: node, l: l}
	s.http = &http.Server{Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: createLimit}
	return s, nil
}

// Serve answers until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.http.Close() })
	defer stop()
	if err := s.http.Serve(s.l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Exec returns a URL that is good for one use within a minute.
func (s *Server) Exec(r *cri.ExecRequest) (*cri.ExecResponse, error) {
	if err := checkStreams(r.GetContainerId(), r.GetTty(), r.GetStdin(), r.GetStdout(), r.GetStderr()); err != nil {
		return nil, err
	}
	url, err := s.url("exec", r)
	return &cri.ExecResponse{Url: url}, err
}

// Attach is like Exec.
func (s *Server) Attach(r *cri.AttachRequest) (*cri.AttachResponse, error) {
	if err := checkStreams(r.GetContainerId(), r.GetTty(), r.GetStdin(), r.GetStdout(), r.GetStderr()); err != nil {
		return nil, err
	}
	url, err := s.url("attach", r)
	return &cri.AttachResponse{Url: url}, err
}

// PortForward is like Exec.
func (s *Server) PortForward(r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	url, err := s.url("portforward", r)
	return &cri.PortForwardResponse{Url: url}, err
}

// checkStreams: Source: CRI ExecRequest and AttachRequest.
func checkStreams(id string, tty, stdin, stdout, stderr bool) error {
	switch {
	case id == "":
		return fault.New(fault.Invalid, "the request names no container")
	case tty && stderr:
		return fault.New(fault.Invalid, "tty and stderr cannot both be true: a terminal has one output")
	case !stdin && !stdout && !stderr:
		return fault.New(fault.Invalid, "one of stdin, stdout and stderr must be true")
	}
	return nil
}

func (s *Server) url(verb string, r proto.Message) (string, error) {
	slip, err := s.slips.add(r)
	if err != nil {
		return "", err
	}
	return "http://" + s.l.Addr().String() + "/" + verb + "/" + slip, nil
}

// serve finds the request that a URL stands for.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	_, slip, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	want, ok := s.slips.take(slip)
	if !ok || r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.NotFound(w, r)
		return
	}
	h := handler{s.node}
	switch q := want.(type) {
	case *cri.ExecRequest:
		streams := &remotecommand.Options{Stdin: q.GetStdin(), Stdout: q.GetStdout(), Stderr: q.GetStderr(), TTY: q.GetTty()}
		if wantsV5(r) {
			serveV5(w, r, streams, func(ctx context.Context, in io.Reader, out, errs io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
				return h.exec(ctx, q.GetContainerId(), q.GetCmd(), in, out, errs, q.GetTty(), resize)
			})
			return
		}
		remotecommand.ServeExec(w, r, h, "", "", q.GetContainerId(), q.GetCmd(), streams, idleLimit, createLimit, remotecommand.SupportedStreamingProtocols)
	case *cri.AttachRequest:
		streams := &remotecommand.Options{Stdin: q.GetStdin(), Stdout: q.GetStdout(), Stderr: q.GetStderr(), TTY: q.GetTty()}
		if wantsV5(r) {
			serveV5(w, r, streams, func(ctx context.Context, in io.Reader, out, errs io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
				return h.attach(ctx, q.GetContainerId(), in, out, errs, q.GetTty(), resize)
			})
			return
		}
		remotecommand.ServeAttach(w, r, h, "", "", q.GetContainerId(), streams, idleLimit, createLimit, remotecommand.SupportedStreamingProtocols)
	case *cri.PortForwardRequest:
		options, err := portforward.BuildV4Options(q.GetPort())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		portforward.ServePortForward(w, r, h, q.GetPodSandboxId(), "", options, idleLimit, createLimit, portforward.SupportedProtocols)
	}
}

// handler is what the streaming library calls.
type handler struct{ node Node }

// ExecInContainer, AttachContainer and PortForward are the library's names; pod names are not used.
func (h handler) ExecInContainer(ctx context.Context, _, _, container string, args []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return h.exec(ctx, container, args, in, out, errs, tty, resize)
}

// AttachContainer is the library's door to attach.
func (h handler) AttachContainer(ctx context.Context, _, _, container string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return h.attach(ctx, container, in, out, errs, tty, resize)
}

func (h handler) exec(ctx context.Context, id string, args []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
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

func (h handler) attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	s, err := h.node.OpenAttach(ctx, id, Want{in != nil, out != nil, errs != nil, tty})
	if err != nil {
		return err
	}
	_, err = run(ctx, s, in, out, errs, resize)
	return err
}

// PortForward copies one connection; a half close of the client is passed on.
func (h handler) PortForward(ctx context.Context, sandbox, _ string, port int32, client io.ReadWriteCloser) error {
	defer client.Close()
	conn, err := h.node.Dial(ctx, sandbox, port)
	if err != nil {
		return err
	}
	hangUp := sync.OnceFunc(func() { _ = conn.Close() })
	defer hangUp()
	defer context.AfterFunc(ctx, hangUp)()
	var up sync.WaitGroup
	up.Go(func() {
		io.Copy(conn, client)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // the pod has hung up
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
