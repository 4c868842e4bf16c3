package volume

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"worknode/kubelet/translate"
)

// Files are what a container gets beside its volumes: paths on the node, empty where it gets none.
type Files struct {
	Hosts       string // becomes /etc/hosts
	Termination string // becomes its terminationMessagePath
}

// maxTermination bounds a termination message, in bytes. Source: Container API, terminationMessagePath.
const maxTermination = 4096

// PrepareFiles writes the pod's hosts file and makes the empty file for the termination message of one attempt. Those of
// attempts before the last are removed.
// Repeat: safe. Crash: Unmount removes them.
func (v *Volumes) PrepareFiles(pod *v1.Pod, c *v1.Container, restart int, ips []string) (Files, error) {
	if err := plainName("pod uid", string(pod.UID)); err != nil {
		return Files{}, err
	}
	if err := plainName("container", c.Name); err != nil {
		return Files{}, err
	}
	defer v.lock(pod.UID)()
	dir := filepath.Join(v.podDir(pod.UID), "containers", c.Name)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return Files{}, diskFault(err)
	}
	var out Files
	if len(ips) > 0 || pod.Spec.HostNetwork {
		out.Hosts = filepath.Join(v.podDir(pod.UID), "etc-hosts")
		if err := writeHosts(out.Hosts, translate.HostsFile(pod, ips, v.cfg.Node())); err != nil {
			return Files{}, diskFault(err)
		}
	}
	if c.TerminationMessagePath == "" {
		return out, nil
	}
	out.Termination = v.terminationFile(pod.UID, c.Name, restart)
	if err := forgetOld(dir, restart); err != nil {
		return Files{}, diskFault(err)
	}
	f, err := os.OpenFile(out.Termination, os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return Files{}, diskFault(err)
	}
	defer f.Close()
	return out, diskFault(f.Chmod(0o666)) // any user of the container may write it, whatever our umask
}

func (v *Volumes) terminationFile(uid types.UID, container string, restart int) string {
	return filepath.Join(v.podDir(uid), "containers", container, strconv.Itoa(restart))
}

// writeHosts changes the file in place: containers that run have it mounted, and a rename would leave them the old one.
func writeHosts(path string, content []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, content) {
		return nil
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

func forgetOld(dir string, restart int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n < restart-1 {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// TerminationMessage returns what an attempt of a container left as its last words, at most 4096 bytes of it; empty if
// there is nothing.
func (v *Volumes) TerminationMessage(uid types.UID, container string, restart int) string {
	if plainName("pod uid", string(uid)) != nil || plainName("container", container) != nil {
		return ""
	}
	f, err := os.Open(v.terminationFile(uid, container, restart))
	if err != nil {
		return ""
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, maxTermination))
	return string(text)
}
