package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// client does once what a program that uses the network does, with Go's own resolver: only /etc/resolv.conf and
// /etc/hosts of the container count.
func client(ctx context.Context, verb string, args []string) (string, error) {
	switch verb {
	case "api":
		return askAPI(ctx, args[0])
	case "ask":
		return ask(ctx, args[0])
	case "lookup":
		found, err := net.DefaultResolver.LookupHost(ctx, args[0])
		slices.Sort(found)
		return strings.Join(found, " "), err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, args[0], args[1])
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if args[0] == "tcp" {
		return "connected", nil
	}
	// Datagrams get lost, and so do the kernel's refusals, of which it sends a few a second: ask again, as DNS clients do.
	buf := make([]byte, 1500)
	for {
		if _, err := conn.Write([]byte("hello")); err != nil {
			return "", err
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		n, err := conn.Read(buf)
		if !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return string(buf[:n]), err
		}
	}
}

func ask(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return strings.TrimSpace(string(body)), err
}
