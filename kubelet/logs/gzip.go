package logs

import (
	"compress/gzip"
	"context"
	"io"
	"os"
)

const (
	gzSuffix  = ".gz"
	tmpSuffix = ".tmp"
)

// squeeze replaces name by name.gz, keeping owner rights and time. Crash: the source stays until the result is whole.
func squeeze(ctx context.Context, name string) (err error) {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // read only
	st, err := in.Stat()
	if err != nil {
		return err
	}
	tmp := name + tmpSuffix
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, st.Mode().Perm())
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = out.Close()
			_ = os.Remove(tmp) // the next tidy would find it too
		}
	}()
	z, err := gzip.NewWriterLevel(out, gzip.BestSpeed) // logs shrink tenfold even so, at a third of the CPU
	if err != nil {
		return err
	}
	if _, err = io.Copy(z, &until{ctx, in}); err != nil {
		return err
	}
	if err = z.Close(); err != nil {
		return err
	}
	if err = out.Close(); err != nil {
		return err
	}
	if err = os.Chtimes(tmp, st.ModTime(), st.ModTime()); err != nil {
		return err
	}
	if err = os.Rename(tmp, name+gzSuffix); err != nil {
		return err
	}
	return os.Remove(name)
}

// until is a reader that ends with its context.
type until struct {
	ctx context.Context
	in  io.Reader
}

func (u *until) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.in.Read(p)
}
