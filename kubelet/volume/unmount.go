package volume

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"k8s.io/apimachinery/pkg/types"

	"worknode/fault"
	"worknode/kernel/mount"
)

// Unmount removes everything a pod has on the node below the kubelet's root: mounts first, then files. What a hostPath
// names is not touched. It works from what is found and needs no pod.
// Errors: Busy if something is mounted again while we remove; Temporary from the disk.
// Repeat: safe; a pod that has nothing is success. Crash: repeat.
func (v *Volumes) Unmount(ctx context.Context, uid types.UID) error {
	if err := plainName("pod uid", string(uid)); err != nil {
		return err
	}
	defer v.lock(uid)()
	// The kernel lists mounts by their real place: with a symlink in the root's path they would not be found.
	dir, err := filepath.EvalSymlinks(v.podDir(uid))
	if os.IsNotExist(err) {
		return v.shared.remove(uid)
	}
	if err != nil {
		return diskFault(err)
	}
	if err := release(dir); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fault.As(fault.Temporary, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return diskFault(err)
	}
	return v.shared.remove(uid)
}

// release unmounts all below dir and returns when nothing is left.
func release(dir string) error {
	mounts, err := mount.Below(dir)
	if err != nil {
		return fault.As(fault.Temporary, err)
	}
	if len(mounts) == 0 {
		return nil
	}
	for _, m := range mounts {
		if err := mount.Detach(m); err != nil {
			return err
		}
	}
	// Removing files below a mount that is still there would delete what it shows: somebody else's data.
	if mounts, err = mount.Below(dir); err != nil {
		return fault.As(fault.Temporary, err)
	}
	if len(mounts) > 0 {
		return fault.Hint(fault.New(fault.Busy, "%s is still mounted", mounts[0]), "umount -l %s", mounts[0])
	}
	return nil
}

// List returns the pods that have anything on the node, in no order of meaning.
func (v *Volumes) List() []types.UID {
	var out []types.UID
	for _, dir := range []string{filepath.Join(v.cfg.Root, "pods"), v.shared.dir} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			out = append(out, types.UID(e.Name()))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func owner(info os.FileInfo) *syscall.Stat_t { return info.Sys().(*syscall.Stat_t) }
