package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"worknode/fault"
	"worknode/kernel/cgroup"
	"worknode/kubelet/act"
	"worknode/kubelet/logs"
	"worknode/kubelet/translate"
	"worknode/kubelet/volume"
)

// Cleanup removes what a kubelet left on the machine: the pods' volumes and mounts, their cgroups (killing what is still
// in them), their logs. No kubelet may run with the same options. It tries everything and returns all that stayed.
// Repeat: safe. Directories that the user may have named for other things, such as --root-dir itself, stay.
func Cleanup(o Options) error {
	// The rest of the settings matters to a kubelet that runs.
	o.Kubeconfig, o.NodeName = "-", "-"
	if err := o.defaults(); err != nil {
		return err
	}
	var left []error
	tree, err := cgroup.Open()
	if err == nil {
		if err = tree.Kill(o.podsGroup()); err == nil || fault.Is(err, fault.NotFound) {
			err = tree.Remove(o.podsGroup())
		}
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		left = append(left, fmt.Errorf("cgroups of pods: %w", err))
	}
	volumes := volume.New(volume.Config{Root: o.RootDir, Now: time.Now, Node: func() translate.Node { return translate.Node{} }})
	hands := &act.Act{Root: o.RootDir}
	for _, uid := range append(volumes.List(), hands.Marked()...) {
		if err := volumes.Unmount(context.Background(), uid); err != nil {
			left = append(left, fmt.Errorf("volumes of pod %s: %w", uid, err))
			continue
		}
		left = append(left, removeLogs(o, uid))
	}
	left = append(left, os.RemoveAll(filepath.Join(o.RootDir, "did")))
	return errors.Join(left...)
}

// removeLogs removes the log directories of a pod, which end in its UID, and the links into them.
func removeLogs(o Options, uid types.UID) error {
	dirs, err := filepath.Glob(filepath.Join(o.Config.PodLogsDir, "*_"+string(uid)))
	if err != nil {
		return err
	}
	var left []error
	for _, dir := range dirs {
		left = append(left, os.RemoveAll(dir))
	}
	if o.LinkDir != "" && len(dirs) > 0 {
		left = append(left, logs.UnlinkDead(o.LinkDir, o.Config.PodLogsDir))
	}
	return errors.Join(left...)
}
