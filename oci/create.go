package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/cgroup"
	"worknode/kernel/mount"
	"worknode/kernel/netns"
	"worknode/kernel/pidfd"
	"worknode/monitor/birth"
	"worknode/monitor/inside"
	"worknode/oci/spec"
)

// making are the options that create and run share.
type making struct {
	bundle, console, pidFile string
	preserve                 int
	noRing, noPivot          bool
	noReaper                 bool
}

func (m *making) flags(f *flags) {
	m.bundle = "."
	f.text(&m.bundle, "folder of config.json", "bundle", "b")
	f.text(&m.console, "unix socket that takes the terminal's master", "console-socket")
	f.text(&m.pidFile, "file to write the first process' number to", "pid-file")
	f.IntVar(&m.preserve, "preserve-fds", 0, "descriptors from 3 on to pass to the program")
	f.yes(&m.noRing, "share the caller's session keyring", "no-new-keyring")
	f.yes(&m.noPivot, "refused: the root is always pivoted to", "no-pivot")
	f.yes(&m.noReaper, "accepted for runc's sake", "no-subreaper")
}

func (c *call) create(f *flags, args []string) error {
	var m making
	m.flags(f)
	rest, err := f.take(args, 1, 1)
	if err != nil {
		return err
	}
	_, child, err := c.make(rest[0], m, true)
	if err != nil {
		return err
	}
	return child.pass(m.console)
}

// born is a made container's process.
type born struct{ *birth.Child }

// make makes a container that waits for start. detached says that its terminal must go to a socket.
// Nothing of it is left when it fails. Crash: a folder with status creating or created, which delete --force removes.
func (c *call) make(id string, m making, detached bool) (*container, *born, error) {
	if err := checkID(id); err != nil {
		return nil, nil, err
	}
	if m.noPivot {
		return nil, nil, fault.New(fault.Unsupported, "--no-pivot: a root on an initramfs is not supported")
	}
	bundle, err := filepath.Abs(m.bundle)
	if err != nil {
		return nil, nil, err
	}
	config, err := readConfig(bundle)
	if err != nil {
		return nil, nil, err
	}
	terminal := config.Process != nil && config.Process.Terminal
	switch {
	case terminal && detached && m.console == "":
		return nil, nil, fault.Hint(fault.New(fault.Invalid, "container %s has a terminal and nobody to hold it", id), "name a socket with --console-socket")
	case !terminal && m.console != "":
		return nil, nil, fault.New(fault.Invalid, "--console-socket is for a process with terminal: true")
	}
	made, err := spec.Container(config, bundle)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", filepath.Join(bundle, configFile), err)
	}
	for _, w := range made.Warnings {
		c.warn("%s", w)
	}
	group, err := groupOf(id, config.Linux.CgroupsPath)
	if err != nil {
		return nil, nil, err
	}
	k := &container{dir: filepath.Join(c.root, id), spec: config, record: record{Version: recordVersion, ID: id, Bundle: bundle,
		Rootfs: made.Init.Root.Path, Created: time.Now(), Cgroup: group, Keyring: !m.noRing}}
	if k.HostMounts = made.Init.Join["mnt"] == "" && !has(made.Init.New, "mnt"); k.HostMounts {
		if k.Foreign, err = mount.Below(k.Rootfs); err != nil {
			return nil, nil, err
		}
	}
	if err := k.enter(c.root); err != nil {
		return nil, nil, err
	}
	child, err := k.fill(c, made, m)
	if err != nil {
		if left := k.takeDown(); left != nil {
			c.warn("%v", left)
		}
		return nil, nil, err
	}
	return k, &born{child}, nil
}

func has(list []string, want string) bool {
	for _, s := range list {
		if s == want {
			return true
		}
	}
	return false
}

// maxConfig bounds config.json, in bytes.
const maxConfig = 16 << 20

func readConfig(bundle string) (*specs.Spec, error) {
	name := filepath.Join(bundle, configFile)
	info, err := os.Stat(name)
	if err == nil && info.Size() > maxConfig {
		return nil, fault.New(fault.Invalid, "%s: %d bytes, the limit is %d", name, info.Size(), maxConfig)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fault.Hint(fault.New(fault.NotFound, "%w", err), "a bundle is a folder with config.json and a root filesystem: --bundle names it")
	}
	var s specs.Spec
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fault.New(fault.Invalid, "%s: %w", name, err)
	}
	major, rest, _ := strings.Cut(s.Version, ".")
	if _, err := strconv.Atoi(major); err != nil || rest == "" || major != "1" {
		return nil, fault.New(fault.Unsupported, "%s: ociVersion %q: this runtime speaks 1.0.0 to %s", name, s.Version, specs.Version)
	}
	return &s, nil
}

// enter makes the container's folder, which nobody else may have.
func (k *container) enter(root string) error {
	if err := os.MkdirAll(root, 0o711); err != nil {
		return fault.Hint(fault.New(fault.Denied, "records: %w", err), "name a writable folder with --root")
	}
	if err := os.Mkdir(k.dir, 0o711); errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Exists, "container %s exists", k.ID)
	} else if err != nil {
		return fmt.Errorf("container %s: %w", k.ID, err)
	}
	text, err := json.Marshal(k.spec)
	if err == nil {
		err = writeWhole(filepath.Join(k.dir, configFile), text)
	}
	if err == nil {
		err = k.save()
	}
	if err != nil {
		os.RemoveAll(k.dir)
	}
	return err
}

// fill makes cgroup and process.
func (k *container) fill(c *call, made spec.Made, m making) (*birth.Child, error) {
	unlock, err := k.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	tree, err := cgroup.Open()
	if err != nil {
		return nil, err
	}
	tree = tree.Whole()
	limits := spec.Limits(k.spec.Linux.Resources)
	limits.Devices = deviceRules(limits.Devices)
	if err := tree.Make(k.Cgroup, limits); err != nil {
		return nil, err
	}
	made.Init.Cgroup = tree.ProcsFiles(k.Cgroup)
	holders, err := users(&made)
	for _, h := range holders {
		defer h.Close()
	}
	if err != nil {
		return nil, err
	}
	listen, err := birth.Listen(k.dir, startFile)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", k.ID, err)
	}
	defer listen.Close()
	keep, err := descriptors(m.preserve)
	if err != nil {
		return nil, err
	}
	if made.Init.OOMScoreAdj == nil { // config.md: not said means not changed
		made.Init.OOMScoreAdj = scoreOf(os.Getpid())
	}
	order := birth.Order{Program: program, Listen: listen, Keep: keep, Stdio: [3]*os.File{os.Stdin, os.Stdout, os.Stderr},
		Request: inside.Request{Init: made.Init, Terminal: k.spec.Process != nil && k.spec.Process.Terminal,
			User: made.Init.Join["user"] != "", Hooks: spec.Hooks(k.ID, k.Bundle, k.spec)}}
	if k.Keyring {
		order.Request.Keyring = k.ID
	}
	child, err := birth.Make(order)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", k.ID, err)
	}
	for _, w := range child.Warnings {
		c.warn("%s", w)
	}
	k.Pid = child.Pid
	if k.StartTime, err = pidfd.StartTime(child.Pid); err == nil {
		err = k.save()
	}
	if err == nil && m.pidFile != "" {
		err = writeWhole(m.pidFile, []byte(strconv.Itoa(k.Pid)))
	}
	if err != nil {
		_ = pidfd.Signal(child.Pidfd, unix.SIGKILL)
		return nil, err
	}
	return child, nil
}

// program is this binary, which is also the init's.
const program = "/proc/self/exe"

// users makes the user namespaces that a configuration asks for. They live as long as their holders, or who is in them.
func users(made *spec.Made) (holders []*netns.Holder, err error) {
	hold := func(uids, gids []specs.LinuxIDMapping) (string, error) {
		h, err := netns.HoldMapped(sysMap(uids), sysMap(gids))
		if err != nil {
			return "", err
		}
		holders = append(holders, h)
		return h.Path(netns.User), nil
	}
	if made.NewUser {
		path, err := hold(ociMap(made.Init.IDMap.UIDs), ociMap(made.Init.IDMap.GIDs))
		if err != nil {
			return holders, err
		}
		if made.Init.Join == nil {
			made.Init.Join = map[string]string{}
		}
		made.Init.Join["user"] = path
	}
	for at, maps := range made.Maps {
		path, err := hold(maps.UIDs, maps.GIDs)
		if err != nil {
			return holders, fmt.Errorf("mount %s: %w", made.Init.Mounts[at].Destination, err)
		}
		made.Init.Mounts[at].IDMapFrom = path
	}
	return holders, nil
}

func sysMap(list []specs.LinuxIDMapping) (out []syscall.SysProcIDMap) {
	for _, r := range list {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(r.ContainerID), HostID: int(r.HostID), Size: int(r.Size)})
	}
	return out
}

// descriptors are the caller's from 3 on: those asked for, and those of socket activation.
// Source: sd_listen_fds(3).
func descriptors(n int) ([]*os.File, error) {
	if text := os.Getenv("LISTEN_FDS"); text != "" {
		if more, err := strconv.Atoi(text); err == nil && more > 0 {
			n += more
		}
	}
	if n < 0 || n > 1024 {
		return nil, fault.New(fault.Invalid, "--preserve-fds %d: not 0 to 1024", n)
	}
	var out []*os.File
	for fd := 3; fd < 3+n; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, fault.New(fault.Invalid, "--preserve-fds: descriptor %d is not open", fd)
		}
		out = append(out, os.NewFile(uintptr(fd), "kept"))
	}
	return out, nil
}

func scoreOf(pid int) *int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil {
		return nil
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil
	}
	return &n
}

// takeDown removes all that make made. Repeat: safe.
func (k *container) takeDown() error {
	var errs []error
	tree, err := cgroup.Open()
	if err == nil {
		tree = tree.Whole()
		if err = tree.Kill(k.Cgroup); err == nil {
			err = tree.Remove(k.Cgroup)
		}
		// The groups that we made above a relative one go with the last that needs them.
		for up := path.Dir(k.Cgroup); strings.HasPrefix(up, "/"+Name); up = path.Dir(up) {
			tree.Prune(up)
		}
	}
	errs = append(errs, err)
	if k.HostMounts && k.Rootfs != "" {
		points, err := mount.Below(k.Rootfs)
		errs = append(errs, err)
		for _, p := range points {
			if !has(k.Foreign, p) {
				errs = append(errs, mount.Detach(p))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(k.dir)
}
