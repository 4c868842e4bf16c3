package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"worknode/fault"
)

const (
	callWithin   = 10 * time.Second // for the runtime to name its streaming URL and to accept the connection
	lingerWithin = 30 * time.Second // for the runtime to finish after the caller has gone
)

// exec runs a command in a container; the streams go to the runtime's own streaming server.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	s.streamTo(w, r, func(ctx context.Context, id string, f flags) (string, error) {
		cmd := r.URL.Query()["command"]
		if len(cmd) == 0 {
			return "", fault.New(fault.Invalid, "exec needs at least one command parameter")
		}
		resp, err := s.Runtime.Exec(ctx, &cri.ExecRequest{ContainerId: id, Cmd: cmd, Tty: f.tty, Stdin: f.stdin, Stdout: f.stdout, Stderr: f.stderr})
		return resp.GetUrl(), err
	})
}

// attach connects to a container's own streams.
func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	s.streamTo(w, r, func(ctx context.Context, id string, f flags) (string, error) {
		resp, err := s.Runtime.Attach(ctx, &cri.AttachRequest{ContainerId: id, Tty: f.tty, Stdin: f.stdin, Stdout: f.stdout, Stderr: f.stderr})
		return resp.GetUrl(), err
	})
}

// streamTo finds the container, asks the runtime for a streaming URL and joins the two connections.
func (s *Server) streamTo(w http.ResponseWriter, r *http.Request, ask func(context.Context, string, flags) (string, error)) {
	f, err := streamFlags(r.URL.Query())
	if err != nil {
		fail(w, err)
		return
	}
	_, _, id, err := s.runOf(r)
	if err != nil {
		fail(w, err)
		return
	}
	s.join(w, r, func(ctx context.Context) (string, error) { return ask(ctx, id, f) })
}

// run runs a command in a container and answers with its output, stdout and stderr as one, when it has ended.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	_, _, id, err := s.runOf(r)
	if err != nil {
		fail(w, err)
		return
	}
	cmd := r.URL.Query()["cmd"]
	if len(cmd) == 1 {
		cmd = strings.Fields(cmd[0])
	}
	if len(cmd) == 0 {
		fail(w, fault.New(fault.Invalid, "run needs a cmd parameter"))
		return
	}
	resp, err := s.Runtime.ExecSync(r.Context(), &cri.ExecSyncRequest{ContainerId: id, Cmd: cmd})
	if err != nil {
		fail(w, kindOfCRI(err))
		return
	}
	_, _ = w.Write(append(resp.GetStdout(), resp.GetStderr()...)) // a caller that hung up wants no answer
	if code := resp.GetExitCode(); code != 0 {
		fmt.Fprintf(w, "command '%s' exited with %d: %s", strings.Join(cmd, " "), code, resp.GetStderr())
	}
}

// checkpoint asks the runtime to write a container's state to a file below the kubelet's root and names it.
// Source: KEP-2008, kubelet checkpoint API.
func (s *Server) checkpoint(w http.ResponseWriter, r *http.Request) {
	pod, name, id, err := s.runOf(r)
	if err != nil {
		fail(w, err)
		return
	}
	file := filepath.Join(s.RootDir, "checkpoints", fmt.Sprintf("checkpoint-%s_%s-%s-%s.tar", pod.Name, pod.Namespace, name, time.Now().Format(time.RFC3339)))
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		fail(w, err)
		return
	}
	if _, err := s.Runtime.CheckpointContainer(r.Context(), &cri.CheckpointContainerRequest{ContainerId: id, Location: file}); err != nil {
		fail(w, kindOfCRI(err))
		return
	}
	reply(w, map[string][]string{"items": {file}})
}

// portForward connects to ports inside a pod.
func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	pod, err := s.podOf(r)
	if err != nil {
		fail(w, err)
		return
	}
	var ports []int32 // with WebSockets; SPDY names them per stream
	for _, list := range r.URL.Query()["port"] {
		for _, p := range strings.Split(list, ",") {
			n, err := strconv.ParseUint(p, 10, 16)
			if err != nil || n == 0 {
				fail(w, bad("port", p, "a port number"))
				return
			}
			ports = append(ports, int32(n))
		}
	}
	s.join(w, r, func(ctx context.Context) (string, error) {
		list, err := s.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
			State:         &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY},
			LabelSelector: map[string]string{"io.kubernetes.pod.uid": string(pod.UID)},
		}})
		if err != nil {
			return "", err
		}
		if len(list.GetItems()) == 0 {
			return "", fault.New(fault.NotFound, "pod %s/%s has no running sandbox", pod.Namespace, pod.Name)
		}
		resp, err := s.Runtime.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: list.Items[0].Id, Port: ports})
		return resp.GetUrl(), err
	})
}

type flags struct{ stdin, stdout, stderr, tty bool }

// streamFlags reads which streams are wanted, in the API server's words (input) or those of PodExecOptions (stdin).
func streamFlags(q url.Values) (f flags, err error) {
	for name, into := range map[string]*bool{
		"input": &f.stdin, "stdin": &f.stdin, "output": &f.stdout, "stdout": &f.stdout,
		"error": &f.stderr, "stderr": &f.stderr, "tty": &f.tty,
	} {
		if v := q.Get(name); v != "" {
			on, err := strconv.ParseBool(v)
			if err != nil {
				return f, bad(name, v, "true or false")
			}
			*into = *into || on
		}
	}
	if f.tty {
		f.stderr = false // a terminal has one output; CRI refuses both
	}
	if !f.stdin && !f.stdout && !f.stderr {
		return f, fault.New(fault.Invalid, "at least one of stdin, stdout and stderr must be asked for")
	}
	return f, nil
}

// join asks the runtime where to stream and passes the request on, protocol switch included: from then on both
// connections carry the same bytes, so SPDY and WebSocket need no understanding here.
func (s *Server) join(w http.ResponseWriter, r *http.Request, ask func(context.Context) (string, error)) {
	if r.Header.Get("Upgrade") == "" {
		fail(w, fault.New(fault.Invalid, "%s wants to switch protocols: send an Upgrade header for SPDY/3.1 or websocket", r.URL.Path))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callWithin)
	defer cancel()
	where, err := ask(ctx)
	if err != nil {
		fail(w, kindOfCRI(err))
		return
	}
	slog.Info("stream", "path", r.URL.Path, "for", r.Context().Value(caller{}))
	backend, resp, br, err := s.open(ctx, r, where)
	if err != nil {
		fail(w, fault.New(fault.Temporary, "the runtime's streaming server at %s: %w", redact(where), err))
		return
	}
	defer func() { _ = backend.Close() }()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer func() { _ = resp.Body.Close() }()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body) // its error message; half of it is better than none
		return
	}
	client, crw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		fail(w, fmt.Errorf("taking over the connection: %w", err))
		return
	}
	defer func() { _ = client.Close() }()
	_ = client.SetDeadline(time.Time{}) // the server set one for the header
	if err := sendHead(client, resp); err == nil {
		splice(r.Context(), client, crw.Reader, backend, br)
	}
}

// sendHead passes a 101 on as it came; http.Response.Write would add a Content-Length.
func sendHead(to io.Writer, resp *http.Response) error {
	var head bytes.Buffer
	fmt.Fprintf(&head, "HTTP/1.1 %s\r\n", resp.Status)
	if err := resp.Header.Write(&head); err != nil {
		return err
	}
	head.WriteString("\r\n")
	_, err := to.Write(head.Bytes())
	return err
}

// open sends the caller's request to the runtime's URL and reads the answer's head.
func (s *Server) open(ctx context.Context, r *http.Request, where string) (net.Conn, *http.Response, *bufio.Reader, error) {
	u, err := url.Parse(where)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, nil, nil, fault.New(fault.Unsupported, "not an http URL")
	}
	addr := u.Host
	if u.Port() == "" {
		addr = net.JoinHostPort(u.Hostname(), "80")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	req := &http.Request{Method: r.Method, URL: u, Host: u.Host, Header: r.Header.Clone()}
	req.Header.Del("Authorization") // the caller's credentials are not for the runtime
	br := bufio.NewReader(conn)
	err = req.Write(conn)
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(br, req)
	}
	if err != nil {
		_ = conn.Close()
		return nil, nil, nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	return conn, resp, br, nil
}

// splice copies both ways until the runtime ends the stream, or the caller has gone and the runtime had time to
// notice, or ctx ends. The readers hold what was read ahead.
func splice(ctx context.Context, client net.Conn, fromClient io.Reader, backend net.Conn, fromBackend io.Reader) {
	stop := context.AfterFunc(ctx, func() { _ = client.Close(); _ = backend.Close() })
	defer stop()
	var both errgroup.Group
	both.Go(func() error {
		_, err := io.Copy(backend, fromClient)
		if !errors.Is(err, net.ErrClosed) {
			_ = backend.(*net.TCPConn).CloseWrite()
			_ = backend.SetReadDeadline(time.Now().Add(lingerWithin))
		}
		return err
	})
	_, err := io.Copy(client, fromBackend)
	_ = client.Close()
	_ = backend.Close()
	if other := both.Wait(); err == nil {
		err = other
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		slog.Debug("stream ended", "err", err)
	}
}

// redact hides the one-time token at the end of a streaming URL.
func redact(where string) string {
	if i := strings.LastIndexByte(where, '/'); i >= 0 {
		return where[:i] + "/…"
	}
	return where
}

// kindOfCRI gives the runtime's answer the kind that its gRPC code means.
func kindOfCRI(err error) error {
	kind := fault.Unknown
	switch status.Code(err) {
	case codes.OK, codes.Unknown:
		return err
	case codes.NotFound:
		kind = fault.NotFound
	case codes.InvalidArgument, codes.FailedPrecondition:
		kind = fault.Invalid
	case codes.Unimplemented:
		kind = fault.Unsupported
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		kind = fault.Temporary
	}
	return fault.New(kind, "the runtime says: %s", status.Convert(err).Message())
}
