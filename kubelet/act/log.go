package act

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"

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
