package stream

import (
	"errors"
	"io/fs"
	"syscall"
)

// ptyEnd reports an error that means "no more output": reading a terminal's master after the last slave was closed
// gives EIO, not an end of file; a closed file means that we ended it ourselves. Source: pty(7).
func ptyEnd(err error) bool { return errors.Is(err, syscall.EIO) || errors.Is(err, fs.ErrClosed) }
