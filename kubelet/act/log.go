package act

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"worknode/kubelet/logs"
	"worknode/kubelet/translate"
)

// link makes a container's log known to log collectors. They are not worth failing a container for.
func (a *Act) link(pod *v1.Pod, container, id string, attempt int) {
	if a.Links == "" {
		return
	}
	if err := logs.Link(a.Links, pod.Name, pod.Namespace, container, id, a.logPath(pod, container, attempt)); err != nil {
		slog.Warn("log collectors will not find a container's log", "pod", pod.Namespace+"/"+pod.Name, "container", container, "err", err)
	}
}

func (a *Act) logPath(pod *v1.Pod, container string, attempt int) string {
	return filepath.Join(translate.LogDir(a.Node().LogRoot, pod), translate.LogPath(container, attempt))
}

// removeLog deletes the log of one attempt, what rotation made of it, and its link.
func (a *Act) removeLog(pod *v1.Pod, container, id string, attempt int) error {
	if a.Links != "" {
		if err := logs.Unlink(a.Links, pod.Name, pod.Namespace, container, id); err != nil {
			return err
		}
	}
	return logs.Remove(a.logPath(pod, container, attempt))
}

// removeLogs deletes all that a pod logged. The directory carries the pod's UID, so no other pod's logs can be in it;
// links go if they lead there.
func (a *Act) removeLogs(pod *v1.Pod) error {
	dir := translate.LogDir(a.Node().LogRoot, pod)
	if a.Links != "" {
		links, err := filepath.Glob(filepath.Join(a.Links, pod.Name+"_"+pod.Namespace+"_*"))
		if err != nil {
			return err
		}
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, dir+"/") {
				if err := os.Remove(l); err != nil {
					return err
				}
			}
		}
	}
	return os.RemoveAll(dir)
}

// SweepLogs deletes the log directories of pods that are not known, which are those that went while no kubelet ran, and
// of sandboxes that never came to be. known is asked after the directories were listed, so a pod that is new meanwhile
// is safe if it is known before anything is made for it. Repeat: safe.
func (a *Act) SweepLogs(known func(types.UID) bool) error {
	root := a.Node().LogRoot
	dirs, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("logs of pods: %w", err)
	}
	var left []error
	for _, d := range dirs {
		parts := strings.Split(d.Name(), "_") // as translate.LogDir names them
		if len(parts) != 3 || !d.IsDir() || known(types.UID(parts[2])) {
			continue
		}
		left = append(left, os.RemoveAll(filepath.Join(root, d.Name())))
	}
	if a.Links != "" {
		left = append(left, logs.UnlinkDead(a.Links, root))
	}
	return errors.Join(left...)
}
