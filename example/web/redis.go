package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// redis speaks as much of the Redis protocol as a counter needs. It may be used by several goroutines.
// Source: redis.io, "Redis serialization protocol specification", RESP2.
type redis struct {
	address, password string
	idle              chan *conn
}

type conn struct {
	net.Conn
	r *bufio.Reader
}

// refusal is an error that Redis itself answered: the connection is still good.
type refusal string

func (r refusal) Error() string { return "redis: " + string(r) }

func newRedis(address, password string) *redis {
	return &redis{address: address, password: password, idle: make(chan *conn, 4)}
}

// call sends one command and returns its answer, within two seconds. A connection that broke while it was idle is
// replaced once; the command may then have been carried out twice.
func (d *redis) call(ctx context.Context, words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for {
		var c *conn
		fresh := false
		select {
		case c = <-d.idle:
		default:
			var err error
			if c, err = d.dial(ctx); err != nil {
				return "", err
			}
			fresh = true
		}
		answer, err := c.ask(ctx, words...)
		var no refusal
		if err == nil || errors.As(err, &no) {
			d.rest(c)
			return answer, err
		}
		c.Close()
		if fresh || ctx.Err() != nil {
			return "", fmt.Errorf("redis %s at %s: %w", words[0], d.address, err)
		}
	}
}

func (d *redis) rest(c *conn) {
	select {
	case d.idle <- c:
	default:
		c.Close()
	}
}

func (d *redis) dial(ctx context.Context) (*conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.address)
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	c := &conn{raw, bufio.NewReader(raw)}
	if d.password != "" {
		if _, err := c.ask(ctx, "AUTH", d.password); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

func (c *conn) ask(ctx context.Context, words ...string) (string, error) {
	if end, ok := ctx.Deadline(); ok {
		c.SetDeadline(end)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	if _, err := io.WriteString(c, b.String()); err != nil {
		return "", err
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return "", errors.New("an empty answer")
	}
	switch rest := line[1:]; line[0] {
	case '+', ':':
		return rest, nil
	case '-':
		return "", refusal(rest)
	case '$':
		n, err := strconv.Atoi(rest)
		if err != nil || n > 1<<20 {
			return "", fmt.Errorf("answer %q", line)
		}
		if n < 0 {
			return "", nil
		}
		body := make([]byte, n+2)
		_, err = io.ReadFull(c.r, body)
		return string(body[:n]), err
	}
	return "", fmt.Errorf("answer %q", line)
}
