package cni

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"worknode/fault"
)

const (
	settle     = 100 * time.Millisecond // installers write a file in several steps
	sickEvery  = 3 * time.Second        // STATUS while it fails
	wellEvery  = 30 * time.Second       // STATUS while it succeeds: a process each time
	watchAgain = 5 * time.Second        // after the watch itself failed
)

// reload looks at the folder. A good first file comes into force; a bad one leaves the old one in force and makes Ready
// say so; none at all ends the old one.
func (n *Network) reload() {
	c, err := load(n.conf.ConfDir)
	n.mu.Lock()
	defer n.mu.Unlock()
	was, old := n.bad, n.current
	n.bad = nil
	switch {
	case err == nil:
		n.current = c
	case fault.Is(err, fault.NotFound):
		n.current, n.bad = nil, fault.As(fault.Temporary, err)
	default:
		n.bad = fault.As(fault.Temporary, err)
	}
	if err != nil && (was == nil || was.Error() != err.Error()) {
		slog.Warn("network configuration not in force", "error", err, "still", name(n.current))
	}
	if err == nil && (old == nil || old.file != c.file || string(old.list.Bytes) != string(c.list.Bytes) || was != nil) {
		slog.Info("network configuration in force", "network", c.list.Name, "file", c.file)
		n.health = nil
	}
	poke(n.changed)
	poke(n.due)
}

func name(c *config) string {
	if c == nil {
		return ""
	}
	return c.list.Name
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// watch reloads whenever something changes in the folder. Add-ons often make the folder itself.
func (n *Network) watch(ctx context.Context) {
	for ctx.Err() == nil {
		err := n.watchOnce(ctx)
		if err == nil {
			continue
		}
		slog.Warn("network configurations are not watched, looking again", "folder", n.conf.ConfDir, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(watchAgain):
		}
		n.reload()
	}
}

// watchOnce watches the folder, or its nearest ancestor that is there, until that choice may have changed.
func (n *Network) watchOnce(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	dir := n.conf.ConfDir
	for {
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			break
		}
		dir = filepath.Dir(dir)
	}
	if err := w.Add(dir); err != nil {
		return err
	}
	missing := dir != n.conf.ConfDir
	if st, err := os.Stat(n.conf.ConfDir); missing && err == nil && st.IsDir() {
		return nil // it appeared meanwhile
	}
	n.reload() // what changed before the watch began
	timer := time.NewTimer(0)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err, ok := <-w.Errors: // an overflow, above all: something was missed
			if !ok {
				return nil
			}
			slog.Debug("watch of network configurations", "error", err)
			timer.Reset(settle)
		case e, ok := <-w.Events:
			if !ok || missing || e.Name == dir && e.Has(fsnotify.Remove|fsnotify.Rename) {
				return n.settled(ctx)
			}
			timer.Reset(settle)
		case <-timer.C:
			n.reload()
		}
	}
}

// settled gives whoever is making folders a moment, so that the watch is chosen anew once and not per folder.
func (n *Network) settled(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-time.After(settle):
	}
	return nil
}

// watchStatus asks the plugins of the configuration in force how they are, if they know STATUS (spec 1.1).
func (n *Network) watchStatus(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		case <-timer.C:
		}
		c, _ := n.inForce()
		if c == nil || !modern(c.list.CNIVersion) {
			continue // the next configuration wakes us
		}
		limited, stop := context.WithTimeout(ctx, n.conf.DelLimit)
		err := kinded(n.lib.GetStatusNetworkList(limited, c.list))
		stop()
		if ctx.Err() != nil {
			return
		}
		n.noteHealth(c, err)
		next := wellEvery
		if err != nil {
			next = sickEvery
		}
		timer.Reset(next)
	}
}

func (n *Network) noteHealth(c *config, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.current != c {
		return
	}
	if (err == nil) != (n.health == nil) {
		slog.Info("network status changed", "network", c.list.Name, "error", err)
	}
	n.health = nil
	if err != nil {
		n.health = fault.New(fault.Temporary, "network %s of %s: %w", c.list.Name, c.file, err)
	}
}
