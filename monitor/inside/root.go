package inside

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/mount"
	"worknode/monitor/wire"
)

// buildRoot turns this mount namespace, a copy of the host's, into the container's.
func (s *setup) buildRoot() error {
	binds, err := s.takeBinds(-1)
	if err != nil {
		return err
	}
	root, err := s.mountRoot()
	if err != nil {
		return err
	}
	return s.furnish(root, binds)
}

// takeBinds opens the bind sources and cuts this mount namespace off the host's.
// The sources are taken first, while their mounts are still peers of the host's: so each can become shared
// (Bidirectional), slave (HostToContainer) or private by itself, and the rest of the tree is cut off at once.
// user is the namespace to map owners into, or -1.
func (s *setup) takeBinds(user int) ([]int, error) {
	binds := make([]int, len(s.Mounts))
	for i, m := range s.Mounts {
		binds[i] = -1
		if m.Flags&unix.MS_BIND == 0 {
			continue
		}
		tree, err := bindSource(m, user)
		if err != nil {
			return nil, err
		}
		binds[i] = tree
	}
	if !s.ownMounts() {
		return binds, nil
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("cut the mounts off the host's: %w", err)
	}
	return binds, nil
}

// furnish fills the root. It takes over root.
func (s *setup) furnish(root *mount.Root, binds []int) error {
	s.root = root
	for i, m := range s.Mounts {
		if err := s.mount(root, m, binds[i]); err != nil {
			return fmt.Errorf("mount %s on %s: %w", sourceName(m), m.Destination, err)
		}
	}
	if err := s.devices(root); err != nil {
		return err
	}
	if s.req.Terminal {
		if err := s.console(root); err != nil {
			return err
		}
	}
	return nil
}

// enterRoot seals the filled root and makes it the one of this mount namespace.
func (s *setup) enterRoot() error {
	if err := s.hide(s.root); err != nil {
		return err
	}
	if err := s.sealRoot(s.root); err != nil {
		return err
	}
	enter := mount.PivotTo
	if !s.ownMounts() {
		enter = mount.ChangeRoot
	}
	defer s.root.Close()
	if err := enter(s.root.Fd()); err != nil {
		return err
	}
	return s.share()
}

func sourceName(m wire.Mount) string {
	if m.Source != "" {
		return m.Source
	}
	return m.Type
}

// bindSource is a detached copy of the source with its flags applied, ready to attach.
func bindSource(m wire.Mount, user int) (int, error) {
	tree, err := mount.Clone(m.Source, m.Flags&unix.MS_REC != 0)
	if err != nil {
		return -1, fmt.Errorf("mount %s on %s: %w", m.Source, m.Destination, err)
	}
	if err = prepare(tree, m, user); err != nil {
		unix.Close(tree)
		return -1, fmt.Errorf("mount %s on %s: %w", m.Source, m.Destination, err)
	}
	return tree, nil
}

// prepare gives a detached tree its owners, flags and propagation.
func prepare(tree int, m wire.Mount, user int) error {
	mapOwners := mount.Idmap
	if m.IDMapRec {
		mapOwners = mount.IdmapAll
	}
	var err error
	switch {
	case m.IDMapFrom != "":
		var own int
		if own, err = openUser(m.IDMapFrom); err == nil {
			err = mapOwners(tree, own)
			unix.Close(own)
		}
	case m.IDMap && user >= 0:
		err = mapOwners(tree, user)
	}
	if err != nil {
		return err
	}
	clear, _ := mount.Attrs(m.Clear)
	if err := mount.ChangeAttrs(tree, 0, clear, false); err != nil {
		return err
	}
	if err := mount.Change(tree, m.Flags, 0, false); err != nil {
		return err
	}
	return finish(tree, m)
}

// finish applies what every kind of mount can have: flags for the whole tree, and propagation.
func finish(fd int, m wire.Mount) error {
	if m.RecReadonly {
		if err := mount.Change(fd, unix.MS_RDONLY, 0, true); err != nil {
			return err
		}
	}
	if err := mount.ChangeAttrs(fd, m.RecSet, m.RecClear, true); err != nil {
		return err
	}
	return propagate(fd, m.Propagation)
}

func propagate(fd int, types []uintptr) error {
	for _, p := range types {
		if err := mount.Change(fd, 0, p&^unix.MS_REC, p&unix.MS_REC != 0); err != nil {
			return err
		}
	}
	return nil
}

// mountRoot mounts the root filesystem over one of its own directories, so that no extra directory is needed.
func (s *setup) mountRoot() (*mount.Root, error) {
	target, err := s.placeRoot()
	if err != nil {
		return nil, err
	}
	return mount.OpenRoot(target)
}

func (s *setup) placeRoot() (string, error) {
	r := s.Root
	target := r.Path
	var err error
	switch {
	case len(r.Lower) > 0:
		if r.Base != "" {
			if err := unix.Chdir(r.Base); err != nil {
				return "", &os.PathError{Op: "chdir", Path: r.Base, Err: err}
			}
		}
		target = s.rootPlace()
		if r.Upper == "" && len(r.Lower) == 1 {
			err = mount.Bind(target, target, unix.MS_RDONLY, false)
		} else {
			err = mount.Overlay(target, r.Lower, r.Upper, r.Work, true)
		}
	case r.Path != "" && !s.ownMounts():
	case r.Path != "":
		err = mount.Bind(r.Path, r.Path, 0, true)
	default:
		err = fault.New(fault.Invalid, "the container has no root filesystem")
	}
	return target, err
}

// rootPlace is the directory that the root filesystem is mounted over.
func (s *setup) rootPlace() string {
	switch r := s.Root; {
	case r.Upper != "":
		return r.Upper
	case len(r.Lower) > 0:
		return r.Lower[0]
	default:
		return r.Path
	}
}

func (s *setup) mount(root *mount.Root, m wire.Mount, tree int) error {
	if tree >= 0 {
		defer unix.Close(tree)
		return attachBind(root, m, tree)
	}
	at, err := root.Dir(m.Destination)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	if m.Type == "cgroup" {
		return s.mountCgroups(root, m, at)
	}
	if len(m.Lower) > 0 { // names relative to the folder that mountRoot went to
		return mount.Overlay(mount.FdPath(at), m.Lower, "", "", false)
	}
	source := sourceName(m)
	if err := unix.Mount(source, mount.FdPath(at), m.Type, m.Flags&^unix.MS_REC, m.Data); err != nil {
		return fmt.Errorf("type %s options %q: %w", m.Type, m.Data, err)
	}
	if len(m.Propagation) == 0 && !m.RecReadonly && m.RecSet|m.RecClear == 0 && !m.CopyUp {
		return nil
	}
	on, err := root.Open(m.Destination, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(on)
	if m.CopyUp {
		if err := copyUp(at, on); err != nil {
			return fmt.Errorf("copy what was there: %w", err)
		}
	}
	return finish(on, m)
}

func attachBind(root *mount.Root, m wire.Mount, tree int) error {
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	place := root.File
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		place = root.Dir
	}
	at, err := place(m.Destination)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	err = mount.Attach(tree, at)
	if errors.Is(err, unix.ENOTDIR) {
		return fault.Hint(fault.As(fault.Invalid, err), "one of them is a directory and the other a file")
	}
	return err
}

// mountCgroups shows the container its cgroups. On v2 that is one mount, rooted by the cgroup namespace. On v1 the
// directories of the container's own groups are bound, so nothing of the host's tree shows even without a namespace.
func (s *setup) mountCgroups(root *mount.Root, m wire.Mount, at int) error {
	const attrs = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return unix.Mount("cgroup2", mount.FdPath(at), "cgroup2", m.Flags&^(unix.MS_REC|unix.MS_BIND), m.Data)
	}
	if err := unix.Mount("cgroup", mount.FdPath(at), "tmpfs", attrs, "mode=755,size=64k"); err != nil {
		return fmt.Errorf("tmpfs for the hierarchies: %w", err)
	}
	for _, procs := range s.Cgroup {
		dir := path.Dir(procs)
		rel := strings.TrimPrefix(dir, "/sys/fs/cgroup/")
		hierarchy, _, _ := strings.Cut(rel, "/")
		err := bindInto(root, dir, path.Join(m.Destination, hierarchy), attrs|m.Flags&unix.MS_RDONLY)
		if err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	if m.Flags&unix.MS_RDONLY == 0 {
		return nil
	}
	on, err := root.Open(m.Destination, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(on)
	return mount.Change(on, unix.MS_RDONLY, 0, false)
}

func bindInto(root *mount.Root, source, destination string, flags uintptr) error {
	tree, err := mount.Clone(source, false)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := mount.Change(tree, flags, 0, false); err != nil {
		return err
	}
	at, err := root.Dir(destination)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return mount.Attach(tree, at)
}

// hide covers what the container must not read, and remounts what it must not write. Absent paths are skipped, as the
// OCI runtime spec asks.
func (s *setup) hide(root *mount.Root) error {
	for _, name := range s.Masked {
		if err := mask(root, name); err != nil {
			return fmt.Errorf("mask %s: %w", name, err)
		}
	}
	for _, name := range s.Readonly {
		if err := protect(root, name); err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
	}
	return nil
}

func mask(root *mount.Root, name string) error {
	at, err := root.Open(name, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.Mount("tmpfs", mount.FdPath(at), "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=0k,nr_inodes=2")
	}
	tree, err := mount.Clone("/dev/null", false)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return mount.Attach(tree, at)
}

func protect(root *mount.Root, name string) error {
	at, err := root.Open(name, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	tree, err := mount.CloneFd(at, true)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := mount.Change(tree, unix.MS_RDONLY, 0, true); err != nil {
		return err
	}
	return mount.Attach(tree, at)
}

func (s *setup) sealRoot(root *mount.Root) error {
	if !s.ownMounts() {
		if s.Root.Readonly || s.Root.Propagation != "" {
			return fault.New(fault.Unsupported, "a root that is read-only or has a propagation of its own needs a mount namespace of its own")
		}
		return nil
	}
	if s.Root.Readonly {
		if err := mount.Change(root.Fd(), unix.MS_RDONLY, 0, false); err != nil {
			return fmt.Errorf("make the root read-only: %w", err)
		}
	}
	return nil
}

// share gives the root its propagation, once it is the root: the kernel does not pivot to a shared one.
func (s *setup) share() error {
	if !s.ownMounts() {
		return nil
	}
	p := s.Root.Propagation
	kinds := map[string]uintptr{"": 0, "private": 0, "slave": 0, "shared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE}
	kind, ok := kinds[strings.TrimPrefix(p, "r")]
	if !ok {
		return fault.New(fault.Invalid, "root propagation %q is none of private, rslave, rshared", p)
	}
	// Not recursive: the mounts below have their own propagation, set one by one.
	return mount.Change(s.root.Fd(), 0, kind, false)
}
