package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/cgroup"
	"worknode/kernel/pidfd"
)

// The files in a container's folder. The configuration is a copy: what happens to the bundle's after create has no
// effect. Source: OCI runtime.md, "Lifecycle", step 2.
const (
	recordFile = "record.json"
	configFile = "config.json"
	startFile  = "start" // the socket that a created container waits at
)

// record is what cannot be asked of the kernel.
type record struct {
	Version    int // of this form
	ID         string
	Bundle     string // absolute
	Rootfs     string
	Created    time.Time
	Cgroup     string
	Pid        int      // 0 while the container is being created
	StartTime  uint64   // with Pid it names the process for ever
	HostMounts bool     // it shares the host's mount namespace: mounts below Rootfs are ours to remove
	Foreign    []string // with HostMounts: those that were there before
	Keyring    bool
}

const recordVersion = 1

// container is one that exists.
type container struct {
	record
	dir  string
	spec *specs.Spec
}

// checkID keeps ids harmless as file names. Source: runc accepts the same.
func checkID(id string) error {
	ok := id != "" && id != "." && id != ".." && len(id) <= 255
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '+' || c == '-' || c == '.'
	}
	if !ok {
		return fault.New(fault.Invalid, "container id %q: not letters, digits, '_', '+', '-', '.'", id)
	}
	return nil
}

// open finds a container. Errors: NotFound.
func (c *call) open(id string) (*container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	k := &container{dir: filepath.Join(c.root, id), spec: &specs.Spec{}}
	for name, into := range map[string]any{recordFile: &k.record, configFile: k.spec} {
		text, err := os.ReadFile(filepath.Join(k.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.NotFound, "container %s does not exist", id)
		}
		if err == nil {
			err = json.Unmarshal(text, into)
		}
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", id, err)
		}
	}
	if k.spec.Linux == nil {
		k.spec.Linux = &specs.Linux{}
	}
	return k, nil
}

// locked is open for a command that changes the container: two of them never work on it at once.
func (c *call) locked(id string) (*container, func(), error) {
	k, err := c.open(id)
	if err != nil {
		return nil, nil, err
	}
	unlock, err := k.lock()
	if err != nil {
		return nil, nil, err
	}
	if k, err = c.open(id); err != nil { // another may have deleted it while we waited
		unlock()
		return nil, nil, err
	}
	return k, unlock, nil
}

func (k *container) lock() (unlock func(), err error) {
	f, err := os.Open(k.dir)
	if err != nil {
		return nil, fault.New(fault.NotFound, "container %s: %w", k.ID, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("container %s: lock: %w", k.ID, err)
	}
	return func() { f.Close() }, nil
}

func (k *container) save() error {
	text, err := json.Marshal(k.record)
	if err != nil {
		return err
	}
	return writeWhole(filepath.Join(k.dir, recordFile), text)
}

// writeWhole renames a file into its place, so that readers see all of it or what was there before.
func writeWhole(name string, text []byte) error {
	part := filepath.Join(filepath.Dir(name), "."+filepath.Base(name))
	err := os.WriteFile(part, text, 0o600)
	if err == nil {
		err = os.Rename(part, name)
	}
	return err
}

// status is what the kernel says of a container. A zombie has stopped: nobody has to have reaped it.
func (k *container) status() specs.ContainerState {
	if k.Pid == 0 {
		return specs.StateCreating
	}
	if !k.alive() {
		return specs.StateStopped
	}
	if _, err := os.Lstat(filepath.Join(k.dir, startFile)); err == nil {
		return specs.StateCreated
	}
	if tree, err := cgroup.Open(); err == nil {
		if frozen, err := tree.Frozen(k.Cgroup); err == nil && frozen {
			return "paused"
		}
	}
	return specs.StateRunning
}

func (k *container) alive() bool {
	stat, err := pidfd.ReadStat(k.Pid)
	return err == nil && stat.StartTime == k.StartTime && stat.State != 'Z' && stat.State != 'X'
}

// process opens the first process. Errors: NotFound if it has ended.
func (k *container) process() (*os.File, error) {
	gone := fault.New(fault.NotFound, "container %s is not running", k.ID)
	f, err := pidfd.Open(k.Pid)
	if err != nil {
		return nil, gone
	}
	if !k.alive() { // the number may be another's by now; the descriptor stays what it is
		f.Close()
		return nil, gone
	}
	return f, nil
}

// groupOf is the cgroup of a container. Relative paths lie below a group of this runtime.
// Source: config-linux.md, "Cgroups Path".
func groupOf(id, wanted string) (string, error) {
	switch {
	case wanted == "":
		return "/" + Name + "-" + id, nil // no group above it to be left behind
	case path.IsAbs(wanted):
		return path.Clean(wanted), nil
	case len(filepath.SplitList(wanted)) == 3:
		return "", fault.Hint(fault.New(fault.Unsupported, "linux.cgroupsPath %q is one for systemd", wanted), "configure the engine for the cgroupfs driver")
	}
	return path.Join("/", Name, wanted), nil
}
