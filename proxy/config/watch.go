package config

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long a file must be left alone before it is read: editors and the kubelet write in several steps.
const settle = 50 * time.Millisecond

// Watch calls changed each time the content of file has changed, until ctx ends. It watches the folder, since editors
// replace the file and the kubelet replaces a link beside it; a file that is gone for a moment is no change.
func Watch(ctx context.Context, file string, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(filepath.Dir(file)); err != nil {
		return err
	}
	was, _ := digest(file)
	quiet := time.NewTimer(0)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-w.Events:
			if !ok {
				return nil
			}
			quiet.Reset(settle)
		case err := <-w.Errors:
			slog.Warn("watch of the configuration file", "file", file, "err", err)
			quiet.Reset(settle) // events may be lost: look
		case <-quiet.C:
			if now, err := digest(file); err == nil && now != was {
				was = now
				changed()
			}
		}
	}
}

func digest(file string) ([sha256.Size]byte, error) {
	data, err := os.ReadFile(file)
	return sha256.Sum256(data), err
}

// Follow sends what the flags and their file come to, each time the file has changed, until ctx ends. A file that is wrong
// is named in the log, and changes nothing.
func (f *Flags) Follow(ctx context.Context, send func(*Loaded)) error {
	return Watch(ctx, f.File, func() {
		l, err := f.Load()
		if err != nil {
			slog.Error("configuration not taken, the one before stays in force; correct the file", "err", err)
			return
		}
		send(l)
	})
}
