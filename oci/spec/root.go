package spec

import (
	"io/fs"
	"path"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/wire"
)

// mounts translates the root filesystem and all that is mounted in it.
func (m *Made) mounts(s *specs.Spec, bundle string) error {
	root := s.Root.Path
	if !filepath.IsAbs(root) {
		root = filepath.Join(bundle, root)
	}
	m.Init.Root = wire.Root{Path: root, Readonly: s.Root.Readonly, Propagation: s.Linux.RootfsPropagation}
	usual, err := usualPropagation(s.Linux.RootfsPropagation)
	if err != nil {
		return err
	}
	for i, one := range s.Mounts {
		w, err := Mount(one)
		if err != nil {
			return err
		}
		if w.Flags&unix.MS_BIND != 0 {
			if w.Source != "" && !filepath.IsAbs(w.Source) {
				w.Source = filepath.Join(bundle, w.Source)
			}
			if len(w.Propagation) == 0 && usual != 0 {
				w.Propagation = []uintptr{usual}
			}
		}
		if label := s.Linux.MountLabel; label != "" && w.Flags&unix.MS_BIND == 0 {
			if w.Data != "" {
				w.Data += ","
			}
			w.Data += `context="` + label + `"`
		}
		if err := m.owners(i, one, &w); err != nil {
			return err
		}
		m.Init.Mounts = append(m.Init.Mounts, w)
	}
	return nil
}

// usualPropagation is what bind mounts get that name none: what they would get from a root of that propagation.
// Shared leaves them what they are, peers of their source.
func usualPropagation(root string) (uintptr, error) {
	if root == "" {
		return unix.MS_SLAVE | unix.MS_REC, nil
	}
	switch p := propagation(root); p &^ unix.MS_REC {
	case unix.MS_SLAVE, unix.MS_PRIVATE:
		return p | unix.MS_REC, nil
	case unix.MS_SHARED, unix.MS_UNBINDABLE:
		return 0, nil
	}
	return 0, fault.New(fault.Invalid, "linux.rootfsPropagation %q is none of shared, slave, private, unbindable", root)
}

// owners settles whose mapping a bind mount shows its owners through.
func (m *Made) owners(at int, one specs.Mount, w *wire.Mount) error {
	own := len(one.UIDMappings) > 0 || len(one.GIDMappings) > 0
	switch {
	case own && (len(one.UIDMappings) == 0 || len(one.GIDMappings) == 0):
		return fault.New(fault.Invalid, "mount %s: uidMappings and gidMappings go together", one.Destination)
	case own:
		if m.Maps == nil {
			m.Maps = map[int]Maps{}
		}
		m.Maps[at] = Maps{one.UIDMappings, one.GIDMappings}
		w.IDMap = false
	case w.IDMap && m.Init.IDMap == nil:
		return fault.New(fault.Invalid, "mount %s: idmap without mappings takes those of the container's user namespace, and it has none", one.Destination)
	}
	return nil
}

// devices lists the nodes to make: the spec's, and those that every container has unless its /dev comes from elsewhere.
// Source: config-linux.md, "Default Devices".
func (m *Made) devices(s *specs.Spec) error {
	have := map[string]bool{}
	for _, d := range s.Linux.Devices {
		if have[path.Clean(d.Path)] {
			return fault.New(fault.Invalid, "linux.devices: %s is there twice", d.Path)
		}
		if !path.IsAbs(d.Path) {
			return fault.New(fault.Invalid, "linux.devices: path %q is not absolute", d.Path)
		}
		have[path.Clean(d.Path)] = true
		mode := fs.FileMode(0o666)
		if d.FileMode != nil {
			mode = *d.FileMode
		}
		m.Init.Devices = append(m.Init.Devices, wire.Device{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor,
			Mode: deviceMode(mode), UID: value(d.UID), GID: value(d.GID)})
	}
	for _, one := range s.Mounts {
		if path.Clean(one.Destination) == "/dev" && (one.Type == "bind" || hasBind(one.Options)) {
			return nil
		}
	}
	for _, d := range [...]struct {
		name         string
		major, minor int64
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		if !have["/dev/"+d.name] {
			m.Init.Devices = append(m.Init.Devices, wire.Device{Path: "/dev/" + d.name, Type: "c", Major: d.major, Minor: d.minor, Mode: 0o666})
		}
	}
	return nil
}

// deviceMode takes the permission bits; config.json has them as chmod(2) counts, Go puts the upper three elsewhere.
func deviceMode(m fs.FileMode) uint32 { return uint32(m) & 0o7777 }

func hasBind(options []string) bool {
	for _, o := range options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return false
}
