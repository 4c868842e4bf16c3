package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/pidfd"
)

// recordVersion is written into every record; older ones must keep opening.
const recordVersion = 1

// addWait is how long a DEL waits for the end of an ADD that outlived the runtime that began it.
const addWait = 10 * time.Second

// record is an attachment: all that a DEL needs. It is written before ADD and dropped after a DEL has succeeded, on a disk
// that outlives a reboot, as what plugins hold does. It is never synced: a power cut may lose it, and GC is for that.
type record struct {
	Version      int
	Sandbox      string
	Network      string
	CNIVersion   string
	NetNS        string
	Plugins      []json.RawMessage
	Args         [][2]string
	Capabilities map[string]any `json:",omitempty"`
}

func newRecord(c *config, r Request, podCIDRs []string) *record {
	rec := &record{Version: recordVersion, Sandbox: r.Sandbox, Network: c.list.Name, CNIVersion: c.list.CNIVersion,
		NetNS: r.NetNS, Args: r.args(), Capabilities: r.capabilities(podCIDRs)}
	for _, p := range c.list.Plugins {
		rec.Plugins = append(rec.Plugins, p.Bytes)
	}
	return rec
}

// list is the configuration as it was at ADD.
func (r *record) list() (*libcni.NetworkConfigList, error) {
	out := &libcni.NetworkConfigList{Name: r.Network, CNIVersion: r.CNIVersion}
	for _, b := range r.Plugins {
		p, err := libcni.NetworkPluginConfFromBytes(b)
		if err != nil {
			return nil, fault.New(fault.Invalid, "record of sandbox %s: %w", r.Sandbox, err)
		}
		out.Plugins = append(out.Plugins, p)
	}
	return out, nil
}

func (r *record) conf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: r.Sandbox, NetNS: r.NetNS, IfName: Interface, Args: r.Args, CapabilityArgs: r.Capabilities}
}

func (n *Network) path(sandbox string) string {
	return filepath.Join(n.conf.State, "attachments", sandbox+".json")
}

// write stores a record and returns it open and locked. Plugins inherit the lock: it ends when the last of them has
// ended, also if we are killed meanwhile.
func (n *Network) write(r *record) (*os.File, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("CNI record of sandbox %s: %w", r.Sandbox, err)
	}
	next := filepath.Join(n.conf.State, "attachments", ".new-"+r.Sandbox)
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err == nil {
		err = os.Rename(next, n.path(r.Sandbox))
	}
	if err != nil {
		if f != nil {
			f.Close()
		}
		os.Remove(next)
		return nil, fault.Hint(fault.New(fault.Exhausted, "CNI record: %w", err), "make room on the file system of the root folder")
	}
	return f, nil
}

// read returns the record of a sandbox, nil if it has none. A record that cannot be read is set aside: nobody can run a
// DEL from it, and the plugins' GC finds what it stood for.
func (n *Network) read(sandbox string) (*record, error) {
	if sandbox == "" || strings.ContainsRune(sandbox, '/') {
		return nil, fault.New(fault.Invalid, "%q is no sandbox id", sandbox)
	}
	data, err := os.ReadFile(n.path(sandbox))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("CNI record: %w", err)
	}
	r, err := decodeRecord(data, sandbox)
	if err != nil {
		slog.Error("CNI record lost, addresses may stay taken until the plugins' GC", "sandbox", sandbox, "error", err)
		return nil, os.Rename(n.path(sandbox), n.path(sandbox)+".bad")
	}
	return r, nil
}

func decodeRecord(data []byte, sandbox string) (*record, error) {
	r := &record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, err
	}
	if r.Sandbox != sandbox || r.Network == "" || len(r.Plugins) == 0 {
		return nil, fmt.Errorf("it is of sandbox %q, network %q, with %d plugins", r.Sandbox, r.Network, len(r.Plugins))
	}
	_, err := r.list()
	return r, err
}

func (n *Network) drop(sandbox string) error {
	if err := os.Remove(n.path(sandbox)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("CNI record: %w", err)
	}
	return nil
}

// recorded lists the sandboxes that have a record.
func (n *Network) recorded() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(n.conf.State, "attachments"))
	if err != nil {
		return nil, fmt.Errorf("CNI records: %w", err)
	}
	var out []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			out = append(out, id)
		}
	}
	return out, nil
}

// waitForAdd sees to it that no plugin of the sandbox's ADD is left: an address taken after our DEL would be lost. The
// plugins that we start die with us, but what they started may live on; it is killed.
func (n *Network) waitForAdd(ctx context.Context, sandbox string) {
	f, err := os.Open(n.path(sandbox))
	if err != nil {
		return
	}
	defer f.Close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(addWait)
	defer limit.Stop()
	for unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		killAdd(sandbox)
		select {
		case <-tick.C:
		case <-limit.C:
			slog.Warn("a plugin of the sandbox's ADD still runs, ending the attachment anyway", "sandbox", sandbox)
			return
		case <-ctx.Done():
			return
		}
	}
}

// killAdd kills what an ADD for the sandbox left running: ids are random, so nobody else has this one in the environment.
func killAdd(sandbox string) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !ofAdd(pid, sandbox) {
			continue
		}
		f, err := pidfd.Open(pid)
		if err != nil {
			continue // it has ended
		}
		if ofAdd(pid, sandbox) { // still: the descriptor is of no successor
			slog.Info("killing what a dead runtime's plugin left running", "pid", pid, "sandbox", sandbox)
			if err := pidfd.Signal(f, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				slog.Warn("plugin's process stays", "pid", pid, "error", err)
			}
		}
		f.Close()
	}
}

// ofAdd tells whether a process has the environment of a plugin's ADD for the sandbox.
func ofAdd(pid int, sandbox string) bool {
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	vars := strings.Split(string(environ), "\x00")
	return slices.Contains(vars, "CNI_COMMAND=ADD") && slices.Contains(vars, "CNI_CONTAINERID="+sandbox)
}
