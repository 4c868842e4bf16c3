package crilog

import (
	"bytes"
	"errors"
	"io"
)

// tailStart finds where the last n lines begin that o selects. Records that continue a line do not count as lines.
func tailStart(f io.ReaderAt, size, n int64, o Options) (int64, error) {
	if n <= 0 {
		return size, nil
	}
	var (
		chunk = make([]byte, 64<<10)
		head  = make([]byte, headMax)
		lines int64
		start = size // of the oldest line counted
	)
	// visit looks at the record that begins at off and says whether the search is over.
	visit := func(off int64) (bool, error) {
		k, err := f.ReadAt(head, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		line, _, _ := bytes.Cut(head[:k], []byte{'\n'})
		r, ok := parse(line)
		if !ok || !o.wants(r) {
			return false, nil
		}
		if !r.partial || lines == 0 { // a line still being written counts too
			if lines == n {
				return true, nil
			}
			lines++
		}
		start = off
		return false, nil
	}
	for end := size; end > 0; {
		from := max(end-int64(len(chunk)), 0)
		part := chunk[:end-from]
		if _, err := f.ReadAt(part, from); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := len(part) - 1; i >= 0; i-- {
			i = bytes.LastIndexByte(part[:i+1], '\n')
			if i < 0 {
				break
			}
			if off := from + int64(i) + 1; off < size {
				if done, err := visit(off); done || err != nil {
					return start, err
				}
			}
		}
		end = from
	}
	_, err := visit(0)
	return start, err
}
