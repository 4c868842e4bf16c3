package main

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
)

// fake is a server that answers each command with the next line; an empty one hangs up.
func fake(t *testing.T, answers ...string) (address string, commands *atomic.Int32) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	commands = new(atomic.Int32)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(c)
			for {
				var n int
				if _, err := fmt.Fscanf(r, "*%d\r\n", &n); err != nil {
					break
				}
				for range 2 * n {
					r.ReadString('\n')
				}
				a := answers[commands.Add(1)-1]
				if a == "" {
					break
				}
				fmt.Fprint(c, a)
			}
			c.Close()
		}
	}()
	return l.Addr().String(), commands
}

func TestRedisAnswers(t *testing.T) {
	for _, tt := range []struct{ answer, want, fault string }{
		{":42\r\n", "42", ""},
		{"+PONG\r\n", "PONG", ""},
		{"$5\r\nhe\r\no\r\n", "he\r\no", ""},
		{"$-1\r\n", "", ""},
		{"-ERR no\r\n", "", "redis: ERR no"},
		{"?\r\n", "", `answer "?"`},
		{"\r\n", "", "empty"},
		{"$99999999\r\n", "", "answer"},
	} {
		address, _ := fake(t, tt.answer)
		got, err := newRedis(address, "").call(t.Context(), "GET", "x")
		if got != tt.want || (err == nil) != (tt.fault == "") || err != nil && !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("%q: got %q, %v", tt.answer, got, err)
		}
	}
}

func TestRedisReplacesAConnectionThatBrokeWhileIdle(t *testing.T) {
	address, commands := fake(t, "+OK\r\n", ":1\r\n", "", "+OK\r\n", ":2\r\n")
	r := newRedis(address, "secret")
	for _, want := range []string{"1", "2"} {
		if got, err := r.call(t.Context(), "INCR", "x"); got != want || err != nil {
			t.Fatalf("got %q, %v, want %s", got, err, want)
		}
	}
	if n := commands.Load(); n != 5 {
		t.Errorf("%d commands, want 5: the second connection signs in, too", n)
	}
}
