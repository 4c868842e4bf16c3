package wire

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// Frames as builds of protocol 1 wrote them are understood to the last field, and written the same by this build. A
// field that was renamed, retyped or dropped shows here; testdata/v1 never changes.
func TestVersionOneFramesMeanTheSame(t *testing.T) {
	for file, fresh := range map[string]func() any{
		"testdata/v1/requests.jsonl": func() any { return &Request{} },
		"testdata/v1/replies.jsonl":  func() any { return &Reply{} },
	} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			line = strings.TrimSpace(line)
			v := fresh()
			d := json.NewDecoder(strings.NewReader(line))
			d.DisallowUnknownFields()
			if err := d.Decode(v); err != nil {
				t.Errorf("%s: %s: %v", file, line, err)
				continue
			}
			if again, err := json.Marshal(v); err != nil || !bytes.Equal(again, []byte(line)) {
				t.Errorf("%s: %s\nbecame %s (%v)", file, line, again, err)
			}
		}
	}
}

// A frame of a newer build is read as far as we know it.
func TestUnknownFieldsAreIgnored(t *testing.T) {
	a, fd := ends(t)
	b, err := NewConn(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	newer := json.RawMessage(`{"Seq":3,"Teleport":{"To":"mars"},"Signal":{"ID":"c","Signal":15,"Politely":true}}`)
	if err := a.Send(newer); err != nil {
		t.Fatal(err)
	}
	var req Request
	if _, err := b.Recv(&req); err != nil || req.Seq != 3 || req.Signal == nil || req.Signal.ID != "c" {
		t.Errorf("read %+v, %v", req, err)
	}
}
