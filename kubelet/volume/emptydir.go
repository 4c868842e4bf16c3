package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"worknode/fault"
	"worknode/kernel/mount"
	"worknode/kubelet/translate"
)

// setUpEmptyDir makes a directory everyone may write to; with an fsGroup new files in it belong to that group.
// The directory appears complete under its name, so one that exists is never touched again: it is the container's.
func (v *Volumes) setUpEmptyDir(pod *v1.Pod, vol *v1.Volume) error {
	dir := v.path(pod.UID, vol)
	medium := v1.StorageMediumDefault
	if vol.EmptyDir != nil {
		medium = vol.EmptyDir.Medium
	}
	if strings.HasPrefix(string(medium), string(v1.StorageMediumHugePages)) {
		return fault.New(fault.Unsupported, "emptyDir medium %s is not supported yet", medium)
	}
	if medium == v1.StorageMediumMemory {
		return v.memoryDir(pod, vol, dir)
	}
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	fresh := filepath.Join(filepath.Dir(dir), "."+vol.Name)
	if err := os.MkdirAll(fresh, 0o750); err != nil {
		return diskFault(err)
	}
	mode := os.FileMode(0o777)
	if gid := fsGroup(pod); gid >= 0 {
		if err := os.Chown(fresh, 0, gid); err != nil {
			return diskFault(err)
		}
		mode |= os.ModeSetgid
	}
	if err := os.Chmod(fresh, mode); err != nil { // mkdir is subject to the umask
		return diskFault(err)
	}
	return diskFault(os.Rename(fresh, dir))
}

func (v *Volumes) memoryDir(pod *v1.Pod, vol *v1.Volume, dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return diskFault(err)
	}
	if isMountPoint(dir) {
		return nil
	}
	options := "mode=0777"
	if gid := fsGroup(pod); gid >= 0 {
		options = fmt.Sprintf("mode=2777,gid=%d", gid)
	}
	if size := v.memorySize(pod, vol); size > 0 {
		options += fmt.Sprintf(",size=%d", size)
	}
	// noswap keeps what is meant to be in memory there. Needs: kernel 6.4. Older ones refuse the option and say so in the
	// kernel's log, hence they are asked once.
	if !v.swaps.Load() {
		if mount.Tmpfs(dir, options+",noswap", unix.MS_NOSUID|unix.MS_NODEV) == nil {
			return nil
		}
		v.swaps.Store(true)
	}
	return diskFault(mount.Tmpfs(dir, options, unix.MS_NOSUID|unix.MS_NODEV))
}

// memorySize is the least of the volume's sizeLimit, what the pod's memory limits add up to, and the node's allocatable,
// in bytes; zero if none of them is known.
func (v *Volumes) memorySize(pod *v1.Pod, vol *v1.Volume) int64 {
	node := v.cfg.Node()
	allocatable := node.Allocatable[v1.ResourceMemory]
	size := allocatable.Value()
	least := func(n int64) {
		if n > 0 && (size == 0 || n < size) {
			size = n
		}
	}
	least(translate.ForPod(pod, node).Memory)
	if q := vol.EmptyDir.SizeLimit; q != nil {
		least(q.Value())
	}
	return size
}

// fsGroup is the group that owns the pod's volumes, -1 if none.
func fsGroup(pod *v1.Pod) int {
	if sc := pod.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
		return int(*sc.FSGroup)
	}
	return -1
}

// setUpHostPath makes or checks what the type of a hostPath asks for. Ownership is never changed.
func setUpHostPath(hp *v1.HostPathVolumeSource) error {
	kind := v1.HostPathUnset
	if hp.Type != nil {
		kind = *hp.Type
	}
	if !filepath.IsAbs(hp.Path) {
		return fault.New(fault.Invalid, "hostPath %q is not absolute", hp.Path)
	}
	info, err := os.Stat(hp.Path)
	missing := os.IsNotExist(err)
	if err != nil && !missing {
		return fault.New(fault.Temporary, "hostPath type check failed: %w", err)
	}
	var ok bool
	var word string
	switch kind {
	case v1.HostPathUnset:
		return nil // a missing path is the runtime's to report
	case v1.HostPathDirectoryOrCreate:
		if missing {
			return diskFault(os.MkdirAll(hp.Path, 0o755))
		}
		ok, word = info.IsDir(), "directory"
	case v1.HostPathFileOrCreate:
		if missing {
			f, err := os.OpenFile(hp.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err == nil {
				err = f.Close()
			}
			return diskFault(err)
		}
		ok, word = info.Mode().IsRegular(), "file"
	case v1.HostPathDirectory:
		ok, word = !missing && info.IsDir(), "directory"
	case v1.HostPathFile:
		ok, word = !missing && info.Mode().IsRegular(), "file"
	case v1.HostPathSocket:
		ok, word = !missing && info.Mode()&os.ModeSocket != 0, "socket file"
	case v1.HostPathCharDev:
		ok, word = !missing && info.Mode()&os.ModeCharDevice != 0, "character device"
	case v1.HostPathBlockDev:
		ok, word = !missing && info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0, "block device"
	default:
		return fault.New(fault.Invalid, "%q is an invalid volume type", kind)
	}
	if !ok {
		// It may be made later, by another pod or a person: worth trying again.
		return fault.New(fault.Temporary, "hostPath type check failed: %s is not a %s", hp.Path, word)
	}
	return nil
}
