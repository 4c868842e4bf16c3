package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// socket is an abstract one: it belongs to the network namespace, and goes with its process, however that ends. So it is
// the lock that keeps two proxies from one namespace, and the place where people's tools ask the one that runs. Anybody in
// the namespace may connect; only root is answered.
const socket = "@worknode-proxy"

// alone makes sure that one proxy works in a network namespace. Errors: Denied, with the process that has the lock.
func alone() (net.Listener, error) {
	l, err := net.Listen("unix", socket)
	if !errors.Is(err, unix.EADDRINUSE) {
		return l, err
	}
	who := "another process has its lock, " + socket
	if c, err := net.DialTimeout("unix", socket, time.Second); err == nil {
		if cred, err := peer(c); err == nil {
			who = fmt.Sprintf("process %d of user %d has its lock, %s", cred.Pid, cred.Uid, socket)
		}
		c.Close()
	}
	return nil, fault.Hint(fault.New(fault.Denied, "another worknode proxy runs in this network namespace: %s", who), "end it first, or use it: `worknode proxy dump`")
}

func peer(c net.Conn) (*unix.Ucred, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) { cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(err, inner)
}

// rootOnly closes connections of anybody else.
type rootOnly struct{ net.Listener }

func (l rootOnly) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if cred, err := peer(c); err == nil && cred.Uid == 0 {
			return c, nil
		}
		c.Close()
	}
}

// answer serves people's tools until ctx ends.
func (p *process) answer(ctx context.Context, l net.Listener) {
	mux := http.NewServeMux()
	reply := func(path string, do func(context.Context, url.Values) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			out, err := do(r.Context(), r.URL.Query())
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(out) // the asker may be gone
		})
	}
	reply("/dump", func(ctx context.Context, _ url.Values) (any, error) { return p.dump(ctx) })
	reply("/trace", func(ctx context.Context, q url.Values) (any, error) {
		return p.trace(ctx, q.Get("client"), q.Get("to"), q.Get("device"))
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 8 << 10}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(rootOnly{l}); !errors.Is(err, http.ErrServerClosed) {
		slog.Error("questions of `worknode proxy dump` and trace are no longer answered", "err", err)
	}
}

// ask puts a question to the proxy that runs in the network namespace of the process. Errors: NotFound if there is none;
// Invalid if the question makes no sense.
func ask(ctx context.Context, path string, query url.Values, into any) error {
	// On this goroutine, whose thread may be in another network namespace; the client would dial on one of its own.
	conn, err := net.DialTimeout("unix", socket, 5*time.Second)
	if errors.Is(err, unix.ECONNREFUSED) {
		return fault.Hint(fault.New(fault.NotFound, "no worknode proxy runs in this network namespace"), "start it, or look where it runs: --root DIR for an isolated node, else `nsenter --net=PATH worknode proxy ...`")
	}
	if err != nil {
		return fmt.Errorf("ask the proxy: %w", err)
	}
	defer conn.Close()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://proxy"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	response, err := client.Do(r)
	if err != nil {
		return fault.Hint(fmt.Errorf("ask the proxy: %w", err), "only root is answered")
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		return fault.New(fault.Invalid, "%s", text[:max(0, len(text)-1)])
	}
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return fmt.Errorf("answer of the proxy: %w", err)
	}
	return nil
}
