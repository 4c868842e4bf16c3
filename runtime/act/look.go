package act

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"worknode/kernel/pidfd"
	"worknode/monitor/client"
	"worknode/monitor/wire"
	"worknode/runtime/state"
)

// Alive reports whether a recorded process still is the one that has its pid.
func Alive(pid int, start uint64) bool {
	if pid <= 0 {
		return false
	}
	now, err := pidfd.StartTime(pid)
	return err == nil && now == start
}

// Regain gives a container to a monitor that never knew it: we and the old monitor died together. The process is
// watched by pidfd; its pipes are found again through it, with what it wrote meanwhile.
// Errors: NotFound if the process has gone.
func (k *Keeper) Regain(ctx context.Context, c *state.Container) error {
	files, names, err := client.Regain(c.Pid, c.StartTime)
	if err != nil {
		return err
	}
	return k.Keep(ctx, wire.Process{ID: c.ID, Pid: c.Pid, StartTime: c.StartTime, Started: c.Started, LogPath: c.LogPath, Files: names}, files)
}

// Remains lists what lies in our folders and belongs to nothing we know.
type Remains struct {
	Sandboxes []string // shared files and pins
	Layers    []string // writable layers
	Bundles   []string // of hooks
	Foreign   []string // bundles of other handlers
}

// Look finds the remains of sandboxes and containers that have no record.
func (h *Hands) Look(sandbox, container func(id string) bool) (Remains, error) {
	var r Remains
	var err error
	if r.Sandboxes, err = strangers(h.pods(), sandbox); err != nil {
		return r, err
	}
	if r.Bundles, err = strangers(h.bundles(), container); err != nil {
		return r, err
	}
	if r.Foreign, err = strangers(h.foreigns(), container); err != nil {
		return r, err
	}
	r.Layers, err = strangers(h.layers(), container)
	return r, err
}

func strangers(dir string, known func(string) bool) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if !known(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}
