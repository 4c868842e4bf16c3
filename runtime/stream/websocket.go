package stream

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// v5 is the remote command protocol that can say "stdin has ended". Each message is a channel number and its bytes.
// Source: Kubernetes KEP-4006, "v5.channel.k8s.io".
const v5 = "v5.channel.k8s.io"

const (
	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
	channelError  = 3 // the outcome, as an API Status
	channelResize = 4 // {"Width":…,"Height":…}
	channelClose  = 255
)

const (
	maxFrame   = 1 << 20          // bytes of one message from a client
	writeLimit = 60 * time.Second // a client that takes nothing for so long is gone
)

func wantsV5(r *http.Request) bool {
	if !websocket.IsWebSocketUpgrade(r) {
		return false
	}
	for _, p := range websocket.Subprotocols(r) {
		if p == v5 {
			return true
		}
	}
	return false
}

// door is one upgraded connection; its writers may be used side by side.
type door struct {
	conn *websocket.Conn
	mu   sync.Mutex
}

func (d *door) write(channel byte, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.conn.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	w, err := d.conn.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte{channel}); err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Close()
}

// output is one outgoing channel.
type output struct {
	d       *door
	channel byte
}

func (o output) Write(p []byte) (int, error) {
	if err := o.d.write(o.channel, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (o output) Close() error { return nil }

// serveV5 upgrades the connection, runs do with the client's streams, and sends the outcome.
func serveV5(w http.ResponseWriter, r *http.Request, want *remotecommand.Options, do func(ctx context.Context, in io.Reader, out, errs io.WriteCloser, resize <-chan remotecommand.TerminalSize) error) {
	upgrader := websocket.Upgrader{Subprotocols: []string{v5}, CheckOrigin: func(*http.Request) bool { return true }} // the slip in the URL is the key
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer func() { _ = conn.Close() }()
	conn.SetReadLimit(maxFrame)
	d := &door{conn: conn}
	ctx, stop := context.WithCancel(context.WithoutCancel(r.Context()))
	defer stop()
	var in io.Reader
	var stdin *io.PipeWriter
	if want.Stdin {
		in, stdin = io.Pipe()
	}
	resize := make(chan remotecommand.TerminalSize, 4)
	go func() {
		defer stop() // the client is gone
		d.read(ctx, stdin, resize)
	}()
	var out, errs io.WriteCloser
	if want.Stdout {
		out = output{d, channelStdout}
	}
	if want.Stderr {
		errs = output{d, channelStderr}
	}
	err = do(ctx, in, out, errs, resize)
	if status, jerr := json.Marshal(outcome(err)); jerr == nil {
		_ = d.write(channelError, status) // nobody is left to tell if it fails
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
}

// read sorts the client's messages until the connection ends. Input that the process does not read holds up resizes
// too, as with every client of one connection; it holds up nobody else.
func (d *door) read(ctx context.Context, stdin *io.PipeWriter, resize chan<- remotecommand.TerminalSize) {
	if stdin != nil {
		defer func() { _ = stdin.Close() }()
	}
	defer close(resize)
	for {
		_, data, err := d.conn.ReadMessage()
		if err != nil || len(data) == 0 {
			if err == nil {
				continue
			}
			return
		}
		switch data[0] {
		case channelStdin:
			if stdin != nil {
				_, _ = stdin.Write(data[1:]) // fails when the process has closed its input; the rest is dropped
			}
		case channelClose:
			if len(data) > 1 && data[1] == channelStdin && stdin != nil {
				_ = stdin.Close()
			}
		case channelResize:
			var size remotecommand.TerminalSize
			if json.Unmarshal(data[1:], &size) == nil {
				select {
				case resize <- size:
				case <-ctx.Done():
				}
			}
		}
	}
}

// apiStatus is the part of an API Status that clients read. Source: k8s.io/apimachinery meta/v1 Status.
type apiStatus struct {
	Metadata struct{}   `json:"metadata"`
	Status   string     `json:"status"`
	Message  string     `json:"message,omitempty"`
	Reason   string     `json:"reason,omitempty"`
	Details  *apiCauses `json:"details,omitempty"`
	Code     int        `json:"code,omitempty"`
}

type apiCauses struct {
	Causes []apiCause `json:"causes"`
}

type apiCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func outcome(err error) apiStatus {
	var exit utilexec.ExitError
	switch {
	case err == nil:
		return apiStatus{Status: "Success"}
	case errors.As(err, &exit) && exit.Exited():
		code := strconv.Itoa(exit.ExitStatus())
		return apiStatus{Status: "Failure", Reason: "NonZeroExitCode", Message: "command terminated with non-zero exit code: " + exit.String(),
			Details: &apiCauses{[]apiCause{{"ExitCode", code}}}}
	}
	return apiStatus{Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError,
		Message: strings.TrimSpace("error executing command in container: " + err.Error())}
}
