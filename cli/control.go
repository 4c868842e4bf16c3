package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
)

// control asks the runtime, over its debug socket, for what CRI has no words for.
type control struct{ client *http.Client }

func (s *session) control() (*control, error) {
	at, err := s.place()
	if err != nil {
		return nil, err
	}
	socket := s.socket
	if socket == "" {
		socket = filepath.Join(at.Run, "runtime", "debug.sock")
	}
	if _, err := os.Stat(socket); err != nil {
		return nil, fail(NoNode, "no runtime here: %w (start a node with `worknode run DIR`, name its place with --root, or the runtime's debug socket with --debug-socket)", err)
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &control{&http.Client{Transport: &http.Transport{DialContext: dial}}}, nil
}

// trouble is an error as the runtime words it.
type trouble struct {
	Error string `json:"error"`
	Kind  string `json:"kind"`
}

func (t trouble) err() error {
	if t.Kind == "not found" {
		return fail(NotFound, "%s", t.Error)
	}
	return errors.New(t.Error)
}

// do sends a request; the caller closes the answer's body.
func (c *control) do(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "runtime", Path: path, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	reply, err := c.client.Do(request)
	if err != nil {
		return nil, fail(NoNode, "the runtime: %w", err)
	}
	if reply.StatusCode == http.StatusOK {
		return reply, nil
	}
	defer reply.Body.Close()
	var t trouble
	data, err := io.ReadAll(io.LimitReader(reply.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("the runtime: %w", err)
	}
	if json.Unmarshal(data, &t) != nil || t.Error == "" {
		return nil, fmt.Errorf("the runtime: %s: %s", reply.Status, bytes.TrimSpace(data))
	}
	return nil, t.err()
}

// ask sends a request and reads its JSON answer.
func (c *control) ask(ctx context.Context, method, path string, query url.Values, body io.Reader, into any) error {
	reply, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if err := json.NewDecoder(reply.Body).Decode(into); err != nil {
		return fmt.Errorf("the runtime's answer: %w", err)
	}
	return nil
}
