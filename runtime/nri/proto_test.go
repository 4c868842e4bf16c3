package nri

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"worknode/fault"
)

// every is one of each message that travels.
func every() []any {
	return []any{&registerRequest{}, &configureRequest{}, &configureResponse{}, &synchronizeRequest{}, &synchronizeResponse{}, &podRequest{},
		&containerRequest{}, &createResponse{}, &updateResponse{}, &updateContainersRequest{}, &updateContainersResponse{}, &stateChange{},
		&validateRequest{}, &validateResponse{}, &rpcCall{}, &rpcReply{}}
}

// fill gives every field a value that is not its zero.
func fill(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), depth+1)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), depth+1)
		fill(v.Index(1), depth+1)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, depth+1)
		fill(value, depth+1)
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString(strings.Repeat("x", depth))
	case reflect.Bool:
		v.SetBool(true)
	default:
		if v.CanInt() {
			v.SetInt(int64(-depth))
		} else {
			v.SetUint(uint64(depth) << 20)
		}
	}
}

func TestMessagesTravel(t *testing.T) {
	for _, m := range every() {
		fill(reflect.ValueOf(m).Elem(), 1)
		got := reflect.New(reflect.TypeOf(m).Elem()).Interface()
		if err := decode(encode(nil, m), got); err != nil {
			t.Errorf("%T: %v", m, err)
		}
		if diff := cmp.Diff(m, got, cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
			t.Errorf("%T: %s", m, diff)
		}
	}
}

// The bytes are those that protoc's code writes. Source: protobuf.dev, "Encoding".
func TestEncoding(t *testing.T) {
	for want, m := range map[string]any{
		"":                          &Update{},
		"0a0161":                    &Update{ID: "a"},
		"0a00":                      &CPU{Shares: &Opt[uint64]{0}},
		"0a020805":                  &Memory{Limit: &Opt[int64]{5}},
		"08ffffffffffffffffff01":    &Pids{-1},
		"0801120470696e73":          &SecurityProfile{1, "pins"},
		"1a020102":                  &User{AdditionalGids: []uint32{1, 2}},
		"32060a0161120162":          &Resources{Unified: map[string]string{"a": "b"}},
		"0a001206" + "08011a020805": &pairOf{&empty{}, &numbers{1, &Opt[int64]{5}}},
	} {
		if got := hex.EncodeToString(encode(nil, m)); got != want {
			t.Errorf("%#v: %s, want %s", m, got, want)
		}
	}
}

type pairOf struct {
	A *empty   `nri:"1"`
	B *numbers `nri:"2"`
}

type numbers struct {
	On  int32       `nri:"1"`
	Num *Opt[int64] `nri:"3"`
}

func TestUnknownFieldsAreSkippedAndRubbishIsRefused(t *testing.T) {
	known := encode(nil, &Eviction{ID: "a", Reason: "b"})
	more := append(append([]byte{}, known...), 0x98, 0x06, 0x01, 0x9a, 0x06, 0x01, 'x') // fields 99: a number, bytes
	var got Eviction
	if err := decode(more, &got); err != nil || got != (Eviction{"a", "b"}) {
		t.Errorf("%v %v", got, err)
	}
	for name, b := range map[string][]byte{"cut": known[:len(known)-1], "wrong type": {0x08, 0x01}, "no tag": {0xff}, "long length": {0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}} {
		if err := decode(b, &Eviction{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Numbers of a list may come one by one.
	var u User
	if err := decode([]byte{0x18, 0x01, 0x18, 0x02}, &u); err != nil || !cmp.Equal(u.AdditionalGids, []uint32{1, 2}) {
		t.Errorf("%v %v", u, err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range every() {
		fill(reflect.ValueOf(m).Elem(), 1)
		f.Add(encode(nil, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range every() {
			if decode(b, m) != nil {
				continue
			}
			once := encode(nil, m)
			again := reflect.New(reflect.TypeOf(m).Elem()).Interface()
			if err := decode(once, again); err != nil {
				t.Fatalf("%T: what was read cannot be read again: %v", m, err)
			}
			if twice := encode(nil, again); !bytes.Equal(once, twice) {
				t.Fatalf("%T: %x became %x", m, once, twice)
			}
		}
	})
}

// FuzzMessages: whatever a plugin sends, the cutting ends, and holds no more than it was given.
func FuzzMessages(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 1, 2, 0, 'a', 'b', 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		for {
			_, _, payload, rest, err := cutMessage(b)
			if err != nil || payload == nil {
				return
			}
			if len(rest)+len(payload)+rpcHeader != len(b) {
				t.Fatal("bytes were lost")
			}
			b = rest
		}
	})
}
