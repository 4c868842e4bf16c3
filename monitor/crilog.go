package monitor

import (
	"bytes"
	"time"
)

// lineLimit is how much of a line one log record holds; longer lines become partial records. Source: CRI log format.
const lineLimit = 16 << 10

// batchOut bounds the formatted bytes of one write, whatever the lines look like: a newline costs a whole header.
const batchOut = 64 << 10

// stampLayout is RFC3339Nano with all nine digits, so that records of one file sort by bytes.
const stampLayout = "2006-01-02T15:04:05.000000000Z07:00"

var streamNames = [...]string{"stdout", "stderr"}

// format appends to out the log records of as many whole lines of data as fit into one write, and returns how many
// bytes of data they came from. A tail without newline is left, unless it exceeds a record or tail says how to tag it:
// F when no more will come, P when more will. The same arguments give the same bytes: the next monitor repeats an
// interrupted write that way.
func format(out, data []byte, stream int, at time.Time, tail byte) ([]byte, int) {
	var head [64]byte
	stamp := at.UTC().AppendFormat(head[:0], stampLayout)
	used := 0
	for used < len(data) && len(out) < batchOut {
		rest := data[used:]
		look := min(len(rest), lineLimit+1)
		line, tag, n := rest, byte('F'), 0
		switch i := bytes.IndexByte(rest[:look], '\n'); {
		case i >= 0:
			line, n = rest[:i], i+1
		case look > lineLimit:
			line, tag, n = rest[:lineLimit], 'P', lineLimit
		case tail != 0:
			tag, n = tail, len(rest)
		default:
			return out, used
		}
		out = append(out, stamp...)
		out = append(out, ' ')
		out = append(out, streamNames[stream]...)
		out = append(out, ' ', tag, ' ')
		out = append(out, line...)
		out = append(out, '\n')
		used += n
	}
	return out, used
}
