package nri

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"worknode/fault"
)

// A plugin's socket carries two connections of ttrpc, multiplexed: on the first we call the plugin, on the second it
// calls us. A frame of the multiplexer is a connection's number and a length; frames of one connection make a stream.
// ttrpc is a header (length, stream, type, flags) and a protobuf message. All numbers are big-endian.
// Source: github.com/containerd/nri, pkg/net/multiplex; github.com/containerd/ttrpc, PROTOCOL.md.

const (
	toPlugin, toRuntime = 1, 2 // numbers of the connections

	muxHeader  = 8
	rpcHeader  = 10
	maxMessage = 4 << 20

	rpcRequest, rpcResponse = 1, 2

	// firstFrame is what plugins built with upstream's library read at once: a frame that is longer must hold no more than
	// the rest of one message, so that is how we cut.
	firstFrame = 4096

	answerLimit = 10 * time.Second // for an answer to be taken

	codeUnknown, codeUnimplemented = 2, 12 // gRPC's
)

type rpcCall struct {
	Service string `nri:"1"`
	Method  string `nri:"2"`
	Payload []byte `nri:"3"`
	Timeout int64  `nri:"4"` // nanoseconds
}

type rpcReply struct {
	Status  *rpcStatus `nri:"1"`
	Payload []byte     `nri:"2"`
}

type rpcStatus struct {
	Code    int32  `nri:"1"`
	Message string `nri:"2"`
}

// refusal is an error that the plugin answered, as opposed to one of the way to it.
type refusal struct{ rpcStatus }

func (r *refusal) Error() string {
	if r.Message == "" {
		return fmt.Sprintf("it answered code %d", r.Code)
	}
	return r.Message
}

// errClosed: the connection is gone.
var errClosed = errors.New("the connection is closed")

// conn is the connection to one plugin. serve answers its calls, each in a goroutine of its own.
type conn struct {
	socket net.Conn
	serve  func(ctx context.Context, method string, payload []byte) ([]byte, error)
	spawn  func(name string, fn func(context.Context))

	writing sync.Mutex

	mu      sync.Mutex
	next    uint32 // stream of the next call; odd
	waiting map[uint32]chan rpcReply
	err     error // why it is closed
	done    chan struct{}
}

func newConn(socket net.Conn, spawn func(string, func(context.Context)), serve func(context.Context, string, []byte) ([]byte, error)) *conn {
	return &conn{socket: socket, serve: serve, spawn: spawn, next: 1, waiting: map[uint32]chan rpcReply{}, done: make(chan struct{})}
}

// close ends the connection; calls under way fail with why. Repeat: safe.
func (c *conn) close(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = why
		close(c.done)
		c.socket.Close()
	}
}

// call asks the plugin and reads its answer into reply.
// Errors: a refusal; errClosed; ctx's own.
func (c *conn) call(ctx context.Context, method string, request, reply any) error {
	call := rpcCall{Service: "nri.pkg.api.v1alpha1.Plugin", Method: method, Payload: encode(nil, request)}
	if end, ok := ctx.Deadline(); ok {
		call.Timeout = int64(time.Until(end))
	}
	answer := make(chan rpcReply, 1)
	c.mu.Lock()
	stream := c.next
	c.next += 2
	c.waiting[stream] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, stream)
		c.mu.Unlock()
	}()
	if err := c.send(ctx, toPlugin, stream, rpcRequest, encode(nil, &call)); err != nil {
		return err
	}
	select {
	case r := <-answer:
		if r.Status != nil && r.Status.Code != 0 {
			return &refusal{*r.Status}
		}
		if err := decode(r.Payload, reply); err != nil {
			c.close(err)
			return fmt.Errorf("%w: %w", errClosed, err)
		}
		return nil
	case <-c.done:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send writes one message, cut into frames.
func (c *conn) send(ctx context.Context, number, stream uint32, kind byte, payload []byte) error {
	if len(payload) > maxMessage {
		return fault.New(fault.Exhausted, "a message of %d bytes, at most %d can be sent", len(payload), maxMessage)
	}
	message := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	message = append(binary.BigEndian.AppendUint32(message, stream), kind, 0)
	message = append(message, payload...)
	var b []byte
	for first := true; len(message) > 0; first = false {
		n := len(message)
		if first {
			n = min(n, firstFrame)
		}
		b = binary.BigEndian.AppendUint32(b, number)
		b = append(binary.BigEndian.AppendUint32(b, uint32(n)), message[:n]...)
		message = message[n:]
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	end, _ := ctx.Deadline() // a plugin that does not read must not hold us
	_ = c.socket.SetWriteDeadline(end)
	if n, err := c.socket.Write(b); err != nil {
		if n > 0 {
			c.close(err) // half a message cannot be taken back
		}
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return context.DeadlineExceeded
		}
		return errClosed
	}
	return nil
}

// read takes frames apart until the connection ends. It is the connection's one reader.
func (c *conn) read(ctx context.Context) {
	streams := map[uint32][]byte{toPlugin: nil, toRuntime: nil} // what is not yet a whole message
	in := bufio.NewReader(c.socket)
	for {
		number, payload, err := readFrame(in)
		if err == nil {
			if held, ok := streams[number]; ok {
				streams[number], err = c.messages(ctx, number, append(held, payload...))
			}
		}
		if err != nil {
			c.close(err)
			return
		}
	}
}

// readFrame reads one frame of the multiplexer.
func readFrame(in io.Reader) (number uint32, payload []byte, err error) {
	var head [muxHeader]byte
	if _, err = io.ReadFull(in, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[4:])
	if size > rpcHeader+maxMessage {
		return 0, nil, fault.New(fault.Invalid, "a frame of %d bytes, at most %d are allowed", size, rpcHeader+maxMessage)
	}
	payload = make([]byte, size)
	_, err = io.ReadFull(in, payload)
	return binary.BigEndian.Uint32(head[:]), payload, err
}

// messages handles the whole messages in b and returns the rest.
func (c *conn) messages(ctx context.Context, number uint32, b []byte) ([]byte, error) {
	for {
		stream, kind, payload, rest, err := cutMessage(b)
		if err != nil || payload == nil {
			return b, err
		}
		b = rest
		switch {
		case number == toPlugin && kind == rpcResponse:
			var r rpcReply
			if err := decode(payload, &r); err != nil {
				return nil, err
			}
			c.mu.Lock()
			answer := c.waiting[stream]
			delete(c.waiting, stream)
			c.mu.Unlock()
			if answer != nil {
				answer <- r
			}
		case number == toRuntime && kind == rpcRequest:
			var call rpcCall
			if err := decode(payload, &call); err != nil {
				return nil, err
			}
			c.spawn("answer "+call.Method, func(ctx context.Context) { c.answer(ctx, stream, call) })
		default:
			return nil, fault.New(fault.Invalid, "a message of kind %d on connection %d", kind, number)
		}
	}
}

// cutMessage takes the first message off b; payload is nil while it is not whole.
func cutMessage(b []byte) (stream uint32, kind byte, payload, rest []byte, err error) {
	if len(b) < rpcHeader {
		return 0, 0, nil, b, nil
	}
	size := binary.BigEndian.Uint32(b)
	if size > maxMessage {
		return 0, 0, nil, nil, fault.New(fault.Invalid, "a message of %d bytes, at most %d are allowed", size, maxMessage)
	}
	end := rpcHeader + int(size)
	if len(b) < end {
		return 0, 0, nil, b, nil
	}
	return binary.BigEndian.Uint32(b[4:]), b[8], b[rpcHeader:end:end], b[end:], nil
}

// answer serves one call of the plugin.
func (c *conn) answer(ctx context.Context, stream uint32, call rpcCall) {
	var reply rpcReply
	payload, err := c.serve(ctx, call.Method, call.Payload)
	reply.Payload = payload
	if err != nil {
		code := int32(codeUnknown)
		if fault.Is(err, fault.Unsupported) {
			code = codeUnimplemented
		}
		reply = rpcReply{Status: &rpcStatus{Code: code, Message: err.Error()}}
	}
	ctx, stop := context.WithTimeout(ctx, answerLimit)
	defer stop()
	if err := c.send(ctx, toRuntime, stream, rpcResponse, encode(nil, &reply)); err != nil {
		c.close(err)
	}
}
