package client

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"worknode/fault"
	"worknode/monitor/wire"
)

// A monitor of protocol 1, played from its golden frames, serves this build's client; only what came later is refused,
// and without a word to that monitor.
func TestClientOfAnOldMonitor(t *testing.T) {
	data, err := os.ReadFile("../wire/testdata/v1/replies.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	replies := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	dir, err := os.MkdirTemp("", "wnc")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	listener, err := wire.Listen(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	heard := make(chan string, 16)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			var got map[string]json.RawMessage
			if _, err := conn.Recv(&got); err != nil {
				close(heard)
				return
			}
			seq := string(got["Seq"])
			delete(got, "Seq")
			for kind := range got {
				heard <- kind
				for _, r := range map[string][]int{"Hello": {0, 6}, "Start": {2}, "Signal": {3}, "List": {4, 5}}[kind] {
					var reply map[string]json.RawMessage
					_ = json.Unmarshal(replies[r], &reply)
					if string(reply["Seq"]) != "0" {
						reply["Seq"] = json.RawMessage(seq)
					}
					_ = conn.Send(reply)
				}
			}
		}
	}()
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	c, err := Dial(ctx, filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Pid() != 815 {
		t.Errorf("pid %d", c.Pid())
	}
	if e := <-c.Exits(); e.ID != "c1" || !e.Unknown {
		t.Errorf("exit %+v", e)
	}
	if _, _, err := c.Start(ctx, wire.Start{ID: "x"}, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("its error arrives as %v", err)
	}
	if err := c.Signal(ctx, "c1", 15, false); err != nil {
		t.Error(err)
	}
	if list, err := c.List(ctx); err != nil || len(list) != 1 || list[0].Exit == nil || list[0].Exit.Code != 137 || !list[0].Exit.OOMKilled {
		t.Errorf("list %+v, %v", list, err)
	}
	if _, err := c.Upgrade(ctx, "/monitor"); !fault.Is(err, fault.Unsupported) {
		t.Errorf("upgrade of a monitor that cannot: %v", err)
	}
	c.Close()
	for kind := range heard {
		if kind == "Upgrade" {
			t.Error("the old monitor was asked for what it does not know")
		}
	}
}
