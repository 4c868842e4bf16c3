package crilog

import (
	"bytes"
	"time"
)

// headMax is more than the longest record head: a time with zone and nanoseconds (35), stream (6), tags and blanks.
const headMax = 64

type record struct {
	when    []byte
	stderr  bool
	partial bool
	text    []byte
}

// parse reads one line without its newline; ok is false for what no CRI runtime writes, such as the torn end a
// power cut leaves behind.
func parse(line []byte) (r record, ok bool) {
	var stream, tags []byte
	if r.when, line, ok = bytes.Cut(line, []byte{' '}); !ok {
		return r, false
	}
	if stream, line, ok = bytes.Cut(line, []byte{' '}); !ok {
		return r, false
	}
	tags, r.text, _ = bytes.Cut(line, []byte{' '}) // an empty line may lack the last blank
	tag, _, _ := bytes.Cut(tags, []byte{':'})      // more tags may follow, separated by colons
	switch string(stream) {
	case "stdout":
	case "stderr":
		r.stderr = true
	default:
		return r, false
	}
	switch string(tag) {
	case "F":
	case "P":
		r.partial = true
	default:
		return r, false
	}
	return r, true
}

// before reports whether the record is older than t; a record without a readable time is not.
func (r record) before(t time.Time) bool {
	when, err := time.Parse(time.RFC3339Nano, string(r.when))
	return err == nil && when.Before(t)
}

func (o Options) wants(r record) bool {
	if r.stderr {
		return o.Stderr
	}
	return o.Stdout
}
