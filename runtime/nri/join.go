package nri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// socketFd is where a plugin that we start finds its connection.
const socketFd = 3

// Start starts the plugins that are installed, waits until each has joined or failed to, and lets others in from then on.
// A plugin that fails is logged and left out.
// Errors: the socket cannot be had; Busy if another runtime answers on it.
func (h *Hub) Start(ctx context.Context) error {
	var all sync.WaitGroup
	for _, name := range h.installed() {
		all.Go(func() {
			if err := h.launch(ctx, name); err != nil {
				slog.Error("installed NRI plugin is left out", "plugin", name, "error", err)
			}
		})
	}
	all.Wait()
	if h.opt.Socket == "" {
		return nil
	}
	listener, err := h.listen()
	if err != nil {
		return err
	}
	h.tasks.Go("NRI socket", func(ctx context.Context) {
		stop := context.AfterFunc(ctx, func() { listener.Close() })
		defer stop()
		h.accept(listener)
	})
	return nil
}

func (h *Hub) listen() (net.Listener, error) {
	path := h.opt.Socket
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fault.Hint(fault.New(fault.Busy, "NRI socket %s: another process answers on it", path), "name another socket, or turn NRI off")
	}
	os.Remove(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fault.New(fault.Denied, "NRI socket's folder: %w", err)
	}
	old := unix.Umask(0o177) // a plugin can do what root can
	defer unix.Umask(old)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fault.New(fault.Denied, "NRI socket: %w", err)
	}
	return l, nil
}

func (h *Hub) accept(listener net.Listener) {
	for {
		socket, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			slog.Warn("NRI plugin is not let in", "error", err)
			<-time.After(acceptPause)
			continue
		}
		p := h.newPlugin(socket)
		h.tasks.Go("join of an NRI plugin", func(ctx context.Context) {
			if err := h.bring(ctx, p); err != nil {
				slog.Error("NRI plugin is not let in", "plugin", strings.Trim(p.name(), "-"), "error", err)
			}
		})
	}
}

// acceptPause keeps a lack of descriptors from becoming a lack of CPU.
const acceptPause = 100 * time.Millisecond

func (h *Hub) newPlugin(socket net.Conn) *plugin {
	p := &plugin{hub: h, registered: make(chan registration, 1)}
	p.conn = newConn(socket, h.tasks.Go, p.serve)
	return p
}

// bring takes a plugin from its connection to its place in the list.
func (h *Hub) bring(ctx context.Context, p *plugin) error {
	h.tasks.Go("read from an NRI plugin", func(ctx context.Context) {
		stop := context.AfterFunc(ctx, func() { p.close(ctx.Err()) })
		defer stop()
		p.conn.read(ctx)
		p.close(errClosed)
		h.drop(p)
	})
	err := p.join(ctx)
	if err == nil {
		err = h.admit(ctx, p)
	}
	if err != nil {
		p.close(err)
	} else if p.closed() { // while it was added
		h.drop(p)
	}
	return err
}

// installed lists programs such as 10-topology in the plugin folder.
func (h *Hub) installed() []string {
	list, err := os.ReadDir(h.opt.PluginDir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) && h.opt.PluginDir != "" {
			slog.Warn("NRI plugins are not started", "error", err)
		}
		return nil
	}
	var out []string
	for _, e := range list {
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			out = append(out, e.Name())
		}
	}
	return out
}

// launch starts an installed plugin with a connection of its own.
func (h *Hub) launch(ctx context.Context, name string) error {
	index, base, _ := strings.Cut(name, "-")
	if err := checkName(index, base); err != nil {
		return fmt.Errorf("its file's name is not INDEX-NAME: %w", err)
	}
	config, err := h.configOf(index, base)
	if err != nil {
		return err
	}
	file := filepath.Join(h.opt.PluginDir, name)
	if wasm(file) {
		return fault.Hint(fault.New(fault.Unsupported, "WebAssembly plugins are not supported"), "build it as a program")
	}
	ours, theirs, err := pair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	cmd := exec.Command(file)
	cmd.ExtraFiles = []*os.File{theirs} // becomes socketFd
	cmd.Env = []string{"NRI_PLUGIN_NAME=" + base, "NRI_PLUGIN_IDX=" + index, fmt.Sprintf("NRI_PLUGIN_SOCKET=%d", socketFd)}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return err
	}
	p := h.newPlugin(ours)
	p.index, p.base, p.config, p.launched = index, base, config, true
	p.ended = func() { _ = cmd.Process.Kill() }
	h.tasks.Go("NRI plugin "+name, func(context.Context) {
		err := cmd.Wait()
		slog.Info("installed NRI plugin ended", "plugin", name, "error", err)
		p.close(errClosed)
	})
	return h.bring(ctx, p)
}

// configOf is what an installed plugin is told.
func (h *Hub) configOf(index, base string) (string, error) {
	for _, name := range []string{index + "-" + base, base} {
		text, err := os.ReadFile(filepath.Join(h.opt.ConfigDir, name+".conf"))
		if err == nil {
			return string(text), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("its configuration: %w", err)
		}
	}
	return "", nil
}

func wasm(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	var head [4]byte
	n, _ := f.Read(head[:])
	return string(head[:n]) == "\x00asm"
}

// pair is a connection and its other end.
func pair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("connection: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "plugin")
	defer f.Close()
	theirs := os.NewFile(uintptr(fds[1]), "plugin")
	ours, err := net.FileConn(f)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("connection: %w", err)
	}
	return ours, theirs, nil
}

// applyUpdates does what plugins want of containers that exist, in the order in which they wanted it.
func (h *Hub) applyUpdates(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		}
		h.mu.Lock()
		todo := h.queue
		h.queue = nil
		h.mu.Unlock()
		for _, c := range todo {
			var failed []*Update
			for _, u := range c.list {
				if err := h.opt.Update(ctx, u); err != nil {
					slog.Warn("update by an NRI plugin", "plugin", c.plugin, "id", u.ID, "error", err)
					if !u.IgnoreFailure {
						failed = append(failed, u)
					}
				}
			}
			c.failed <- failed
		}
	}
}
