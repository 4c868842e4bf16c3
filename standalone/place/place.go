// Package place says where a standalone node keeps its things, so that those who start it and those who talk to it agree.
package place

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"worknode/fault"
)

// Node is where one node keeps its things. State outlives a reboot, Run does not have to.
type Node struct {
	State string // objects, certificates, images, kubelet and log folders
	Run   string // sockets, pid files, pinned namespaces, live records
	Group string // cgroup below which everything of the node lives, e.g. "/worknode"
}

// longestSocket is the longest file name below Run that is bound as a socket; sun_path holds 107 bytes and a zero.
const longestSocket = "/runtime/monitor.sock"

// At returns the places of the node with the given --root; empty means the machine's usual ones. Two roots never
// share a cgroup, a socket or a file, so several nodes run side by side.
func At(root string) (Node, error) {
	if root == "" {
		return Node{State: "/var/lib/worknode", Run: "/run/worknode", Group: "/worknode"}, nil
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return Node{}, fmt.Errorf("root %s: %w", root, err)
	}
	p := Node{State: filepath.Join(abs, "lib"), Run: filepath.Join(abs, "run")}
	if n := len(p.Run) + len(longestSocket); n > 107 {
		return Node{}, fault.New(fault.Invalid, "root %s: socket paths below it would have %d bytes, the kernel allows 107 (choose a --root at least %d bytes shorter)", abs, n, n-107)
	}
	sum := sha256.Sum256([]byte(abs))
	p.Group = fmt.Sprintf("/worknode-%x", sum[:4])
	return p, nil
}

func (p Node) Kubeconfig() string              { return filepath.Join(p.State, "kubeconfig") }
func (p Node) PKI() string                     { return filepath.Join(p.State, "pki") }
func (p Node) Objects() string                 { return filepath.Join(p.State, "api") }
func (p Node) Logs() string                    { return filepath.Join(p.State, "log") }
func (p Node) PodLogs() string                 { return filepath.Join(p.State, "log", "pods") }
func (p Node) Kubelet() string                 { return filepath.Join(p.State, "kubelet") }
func (p Node) Runtime() string                 { return filepath.Join(p.State, "runtime") }
func (p Node) RuntimeSocket() string           { return filepath.Join(p.Run, "runtime.sock") }
func (p Node) Pid(name string) string          { return filepath.Join(p.Run, name+".pid") }
func (p Node) Netns() string                   { return filepath.Join(p.Run, "netns") }
func (p Node) CA() string                      { return filepath.Join(p.PKI(), "ca.crt") }
func (p Node) Cert(name string) string         { return filepath.Join(p.PKI(), name+".crt") }
func (p Node) Key(name string) string          { return filepath.Join(p.PKI(), name+".key") }
func (p Node) ClientConfig(name string) string { return filepath.Join(p.PKI(), name+".kubeconfig") }
func (p Node) Lock() string                    { return filepath.Join(p.Run, "supervisor.lock") }

// Make creates the folders, and proves that they can be written: a read-only or full disk is better told now.
func (p Node) Make() error {
	for dir, mode := range map[string]os.FileMode{
		p.State: 0o755, p.Run: 0o755, p.PKI(): 0o700, p.Objects(): 0o700, p.Logs(): 0o755, p.PodLogs(): 0o755, p.Kubelet(): 0o750, p.Runtime(): 0o711,
	} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fault.Hint(fmt.Errorf("state folder %s: %w", dir, err), "make it writable, or choose another place with --root")
		}
	}
	for _, dir := range []string{p.State, p.Run} {
		probe := filepath.Join(dir, ".writable")
		if err := os.WriteFile(probe, []byte("worknode writes this to see whether it can\n"), 0o600); err != nil {
			return fault.Hint(fmt.Errorf("state folder %s: %w", dir, err), "free some space there or make it writable, or choose another place with --root")
		}
		os.Remove(probe)
	}
	return nil
}
