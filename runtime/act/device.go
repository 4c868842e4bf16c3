package act

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
)

// Devices looks up the nodes a container gets besides the basic ones: those it names, or all of the host's /dev when
// it is privileged. A named folder stands for the devices in it.
// Errors: Invalid when a path is no device.
func Devices(c *cri.ContainerConfig) ([]specs.LinuxDevice, error) {
	if c.GetLinux().GetSecurityContext().GetPrivileged() {
		return devicesBelow("/dev", "/dev", true)
	}
	var out []specs.LinuxDevice
	for _, d := range c.GetDevices() {
		if strings.Trim(d.GetPermissions(), "rwm") != "" {
			return nil, fault.New(fault.Invalid, "device %s: permissions %q are not of r, w, m", d.GetHostPath(), d.GetPermissions())
		}
		info, err := os.Stat(d.GetHostPath())
		if err != nil {
			return nil, fault.New(fault.Invalid, "device: %w", err)
		}
		if info.IsDir() {
			list, err := devicesBelow(d.GetHostPath(), d.GetContainerPath(), false)
			if err != nil {
				return nil, err
			}
			out = append(out, list...)
			continue
		}
		node, ok := deviceNode(d.GetHostPath(), d.GetContainerPath())
		if !ok {
			return nil, fault.New(fault.Invalid, "device %s is not a device node", d.GetHostPath())
		}
		out = append(out, node)
	}
	return out, nil
}

// devicesBelow lists device nodes; of the host's /dev it leaves out what each container has of its own.
func devicesBelow(dir, as string, host bool) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // devices come and go
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if host && e.IsDir() {
			switch rel {
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				return fs.SkipDir
			}
		}
		if host && (rel == "console" || rel == "ptmx") || e.Type()&fs.ModeDevice == 0 {
			return nil
		}
		if node, ok := deviceNode(path, filepath.Join(as, rel)); ok {
			out = append(out, node)
		}
		return nil
	})
	return out, err
}

func deviceNode(path, as string) (specs.LinuxDevice, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return specs.LinuxDevice{}, false
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return specs.LinuxDevice{}, false
	}
	return specs.LinuxDevice{Path: as, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: new(fs.FileMode(st.Mode & 0o777)), UID: new(st.Uid), GID: new(st.Gid)}, true
}
