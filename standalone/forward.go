package standalone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"worknode/fault"
)

// Publish forwards one TCP port of the host's loopback to a port of the isolated node.
type Publish struct {
	Host int // port on 127.0.0.1 of the host
	Node int // port on the node's address, usually a NodePort
}

// ParsePublish reads "HOST:NODE" or "PORT".
func ParsePublish(text string) (Publish, error) {
	host, node, both := strings.Cut(text, ":")
	if !both {
		node = host
	}
	h, errHost := strconv.Atoi(host)
	n, errNode := strconv.Atoi(node)
	if errHost != nil || errNode != nil || h < 1 || h > 65535 || n < 1 || n > 65535 {
		return Publish{}, fault.New(fault.Invalid, "--publish %s: want HOSTPORT:NODEPORT with ports from 1 to 65535, for example 8080:30080", text)
	}
	return Publish{h, n}, nil
}

// forward accepts on the host's loopback and carries each connection into the node. It returns once it listens.
func (n *node) forward(ctx context.Context, p Publish) error {
	listener, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Host)))
	if err != nil {
		return fault.Hint(fmt.Errorf("publish port %d: %w", p.Host, err), "free that port, or choose another with --publish PORT:%d", p.Node)
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	target := net.JoinHostPort(n.ip.String(), strconv.Itoa(p.Node))
	n.tasks.Go("publish "+strconv.Itoa(p.Host), func(ctx context.Context) {
		for {
			conn, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				slog.Warn("publish: accept", "port", p.Host, "err", err)
				pause(ctx, 50*time.Millisecond) // out of descriptors: anything faster would only spin
				continue
			}
			n.tasks.Go("connection to "+target, func(ctx context.Context) { n.carry(ctx, conn, target) })
		}
	})
	return nil
}

// carry copies one connection both ways until both directions have ended.
func (n *node) carry(ctx context.Context, client net.Conn, target string) {
	defer client.Close()
	server, err := n.dial(target)
	if err != nil {
		slog.Debug("publish: nobody answers", "target", target, "err", err)
		return
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
	defer stop()
	back := make(chan struct{})
	go func() { // ends with server, which carry closes
		defer close(back)
		relay(client, server)
	}()
	relay(server, client)
	<-back
}

// relay copies one direction and passes its end on, so that half-closed connections work.
func relay(to, from net.Conn) {
	io.Copy(to, from)
	if half, ok := to.(*net.TCPConn); ok {
		_ = half.CloseWrite()
	}
}

// dial connects from inside the node's network namespace.
func (n *node) dial(target string) (net.Conn, error) {
	var conn net.Conn
	err := n.inside(func() error {
		var err error
		// An address literal is dialled on this very thread; names would be resolved on others, in the wrong namespace.
		conn, err = net.DialTimeout("tcp4", target, 5*time.Second)
		return err
	})
	return conn, err
}
