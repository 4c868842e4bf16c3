package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// nameMax is the longest file name that Linux file systems take, in bytes.
const nameMax = 255

// LinkName is the name under which log collectors look for a container's log: they read pod, namespace and container
// from it. Over-long names lose the end of their id, as they always did.
func LinkName(pod, namespace, container, id string) string {
	const suffix = ".log"
	name := fmt.Sprintf("%s_%s_%s-%s", pod, namespace, container, id)
	return name[:min(len(name), nameMax-len(suffix))] + suffix
}

// Link makes dir/LinkName(…) point to a log. Repeat: safe; it replaces a link that points elsewhere.
func Link(dir, pod, namespace, container, id, logPath string) error {
	at := filepath.Join(dir, LinkName(pod, namespace, container, id))
	err := os.Symlink(logPath, at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		return os.Symlink(logPath, at)
	case errors.Is(err, fs.ErrExist):
		if to, err := os.Readlink(at); err == nil && to == logPath {
			return nil
		}
		if err := os.Remove(at); err != nil {
			return err
		}
		return os.Symlink(logPath, at)
	}
	return err
}

// Unlink removes what Link made. Repeat: safe.
func Unlink(dir, pod, namespace, container, id string) error {
	return remove(filepath.Join(dir, LinkName(pod, namespace, container, id)))
}

// UnlinkDead removes the links in dir that lead into logRoot (the pods' logs) to a file that is no more: what a crash,
// or a pod directory removed as a whole, left behind. Links to elsewhere are another node's or a person's, and stay.
func UnlinkDead(dir, logRoot string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		at := filepath.Join(dir, e.Name())
		to, err := os.Readlink(at)
		if err != nil || !strings.HasPrefix(to, filepath.Clean(logRoot)+"/") {
			continue
		}
		// A log that is just being rotated is missing for a moment; its directory is not.
		if _, err := os.Stat(filepath.Dir(to)); errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, remove(at))
		}
	}
	return errors.Join(errs...)
}
