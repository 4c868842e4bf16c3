package nri

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"worknode/fault"
)

// The messages of NRI are plain structs whose tags give protobuf's field numbers, read and written by reflection. Why not
// the generated package: docs/decisions/0003-nri.md. Kinds: bool, string, integers (as varints), pointers to structs
// (messages), slices of string, pointer and integer (packed), maps. Zero and nil are not written, as proto3 has it.
// Source: protobuf.dev, "Encoding".

// encode appends the message that v points to.
func encode(b []byte, v any) []byte { return appendMessage(b, reflect.ValueOf(v).Elem()) }

func appendMessage(b []byte, v reflect.Value) []byte {
	for i := range v.NumField() {
		if n := number(v.Type().Field(i)); n != 0 {
			b = appendField(b, n, v.Field(i), false)
		}
	}
	return b
}

// number is a field's number in the protocol, 0 if it is not part of it.
func number(f reflect.StructField) protowire.Number {
	n, err := strconv.Atoi(f.Tag.Get("nri"))
	if err != nil {
		return 0
	}
	return protowire.Number(n)
}

// appendField writes one field; always writes zero values too, as entries of lists and maps need.
func appendField(b []byte, n protowire.Number, v reflect.Value, always bool) []byte {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), appendMessage(nil, v.Elem()))
		}
		if always {
			return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), nil)
		}
	case reflect.String:
		if v.Len() > 0 || always {
			return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), v.String())
		}
	case reflect.Slice:
		return appendList(b, n, v)
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		for _, key := range keys {
			entry := appendField(appendField(nil, 1, key, true), 2, v.MapIndex(key), true)
			b = protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), entry)
		}
	default:
		if x := varint(v); x != 0 || always {
			return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), x)
		}
	}
	return b
}

func appendList(b []byte, n protowire.Number, v reflect.Value) []byte {
	switch kind := v.Type().Elem().Kind(); {
	case kind == reflect.Uint8:
		if v.Len() > 0 {
			b = protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v.Bytes())
		}
	case kind == reflect.String || kind == reflect.Pointer:
		for i := range v.Len() {
			b = appendField(b, n, v.Index(i), true)
		}
	case v.Len() > 0:
		var packed []byte
		for i := range v.Len() {
			packed = protowire.AppendVarint(packed, varint(v.Index(i)))
		}
		b = protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), packed)
	}
	return b
}

func varint(v reflect.Value) uint64 {
	switch {
	case v.Kind() == reflect.Bool:
		return protowire.EncodeBool(v.Bool())
	case v.CanInt():
		return uint64(v.Int())
	}
	return v.Uint()
}

// decode reads a message into what v points to. Unknown fields are skipped.
// Errors: Invalid for what is no such message.
func decode(b []byte, v any) error { return readMessage(b, reflect.ValueOf(v).Elem()) }

func readMessage(b []byte, v reflect.Value) error {
	for len(b) > 0 {
		n, wire, size := protowire.ConsumeTag(b)
		if size < 0 {
			return malformed(v, protowire.ParseError(size))
		}
		b = b[size:]
		at := fieldOf(v, n)
		if !at.IsValid() {
			if size = protowire.ConsumeFieldValue(n, wire, b); size < 0 {
				return malformed(v, protowire.ParseError(size))
			}
			b = b[size:]
			continue
		}
		rest, err := readField(b, wire, at)
		if err != nil {
			return err
		}
		b = rest
	}
	return nil
}

func malformed(v reflect.Value, err error) error {
	return fault.New(fault.Invalid, "message %s: %w", v.Type().Name(), err)
}

func fieldOf(v reflect.Value, n protowire.Number) reflect.Value {
	for i := range v.NumField() {
		if number(v.Type().Field(i)) == n {
			return v.Field(i)
		}
	}
	return reflect.Value{}
}

func readField(b []byte, wire protowire.Type, at reflect.Value) (rest []byte, err error) {
	switch wire {
	case protowire.VarintType:
		x, size := protowire.ConsumeVarint(b)
		if size < 0 {
			return nil, malformed(at, protowire.ParseError(size))
		}
		if at.Kind() == reflect.Slice {
			e := reflect.New(at.Type().Elem()).Elem()
			if err := setVarint(e, x); err != nil {
				return nil, err
			}
			at.Set(reflect.Append(at, e))
			return b[size:], nil
		}
		return b[size:], setVarint(at, x)
	case protowire.BytesType:
		text, size := protowire.ConsumeBytes(b)
		if size < 0 {
			return nil, malformed(at, protowire.ParseError(size))
		}
		return b[size:], readBytes(text, at)
	}
	return nil, fault.New(fault.Invalid, "message: wire type %d where %s is expected", wire, at.Type())
}

func readBytes(text []byte, at reflect.Value) error {
	switch at.Kind() {
	case reflect.String:
		at.SetString(string(text))
		return nil
	case reflect.Pointer:
		if at.IsNil() {
			at.Set(reflect.New(at.Type().Elem()))
		}
		return readMessage(text, at.Elem())
	case reflect.Map:
		return readEntry(text, at)
	case reflect.Slice:
		return readElements(text, at)
	}
	return fault.New(fault.Invalid, "message: bytes where %s is expected", at.Type())
}

func readElements(text []byte, at reflect.Value) error {
	kind := at.Type().Elem().Kind()
	if kind == reflect.Uint8 {
		at.SetBytes(slices.Clone(text))
		return nil
	}
	if kind == reflect.String || kind == reflect.Pointer {
		e := reflect.New(at.Type().Elem()).Elem()
		if err := readBytes(text, e); err != nil {
			return err
		}
		at.Set(reflect.Append(at, e))
		return nil
	}
	for len(text) > 0 { // packed
		rest, err := readField(text, protowire.VarintType, at)
		if err != nil {
			return err
		}
		text = rest
	}
	return nil
}

func readEntry(text []byte, at reflect.Value) error {
	key, value := reflect.New(at.Type().Key()).Elem(), reflect.New(at.Type().Elem()).Elem()
	for len(text) > 0 {
		n, wire, size := protowire.ConsumeTag(text)
		if size < 0 {
			return malformed(at, protowire.ParseError(size))
		}
		text = text[size:]
		to := key
		if n == 2 {
			to = value
		} else if n != 1 {
			return fault.New(fault.Invalid, "message: field %d in an entry of a map", n)
		}
		rest, err := readField(text, wire, to)
		if err != nil {
			return err
		}
		text = rest
	}
	if at.IsNil() {
		at.Set(reflect.MakeMap(at.Type()))
	}
	at.SetMapIndex(key, value)
	return nil
}

func setVarint(v reflect.Value, x uint64) error {
	switch {
	case v.Kind() == reflect.Bool:
		v.SetBool(x != 0)
	case v.CanInt():
		v.SetInt(int64(x))
	case v.CanUint():
		v.SetUint(x)
	default:
		return fault.New(fault.Invalid, "message: a number where %s is expected", v.Type())
	}
	return nil
}
