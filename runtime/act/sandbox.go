package act

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/kernel/mount"
	"worknode/kernel/netns"
	"worknode/runtime/plan"
	"worknode/runtime/state"
	"worknode/step"
)

// shmOptions is the pod's /dev/shm; 64 MiB is what Docker made everyone expect.
const shmOptions = "mode=1777,size=65536k"

// openNet are the defaults of every pod network that is not the host's: low ports and ping need no capability there,
// as the namespace is the pod's alone. Other CRI runtimes have the same defaults.
var openNet = [][2]string{
	{"net.ipv4.ip_unprivileged_port_start", "0"},
	{"net.ipv4.ping_group_range", "0 2147483647"},
}

// MakeSandbox makes a sandbox's namespaces, shared files, shared memory and network settings; not its addresses.
// Repeat: RemoveSandbox first. Crash: look finds what stays by the sandbox's id.
func (h *Hands) MakeSandbox(_ context.Context, s *state.Sandbox) error {
	dir := h.Shared(s.ID)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return fmt.Errorf("sandbox folder: %w", err)
	}
	step.At("sandbox folder made")
	var kinds []netns.Kind
	if !s.HostNetwork {
		kinds = append(kinds, netns.Net, netns.UTS)
	}
	ids := users(s)
	if ids != nil && h.usersErr != nil {
		return fault.Hint(fmt.Errorf("user namespace of the pod: %w", h.usersErr), "set hostUsers: true")
	}
	if !s.HostIPC {
		kinds = append(kinds, netns.IPC)
		options := shmOptions
		if ids != nil {
			options = fmt.Sprintf("%s,uid=%d,gid=%d", options, ids.UID, ids.GID)
		}
		shm := filepath.Join(dir, "shm")
		if err := os.Mkdir(shm, 0o711); err != nil {
			return fmt.Errorf("sandbox folder: %w", err)
		}
		step.At("folder for shm made")
		if err := mount.Tmpfs(shm, options, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil {
			return err
		}
		step.At("shm mounted")
	}
	if ids != nil {
		if err := netns.CreateOwned(h.Pins(s.ID), s.Hostname, *ids, kinds...); err != nil {
			return err
		}
	} else if len(kinds) > 0 {
		if err := netns.Create(h.Pins(s.ID), s.Hostname, kinds...); err != nil {
			return err
		}
	}
	step.At("namespaces pinned")
	return h.netSettings(s)
}

// netSettings writes the sysctls that belong to the pod's network; those of ipc are written by each container's init,
// which enters that namespace anyway.
func (h *Hands) netSettings(s *state.Sandbox) error {
	if s.HostNetwork {
		return nil
	}
	return netns.Do(h.NetPath(s), func() error {
		for _, kv := range openNet {
			if err := setSysctl(kv[0], kv[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		for key, value := range s.Config.GetLinux().GetSysctls() {
			if netSysctl(key) {
				if err := setSysctl(key, value); err != nil {
					return fault.Hint(err, "the kernel refused a sysctl of the pod's securityContext")
				}
			}
		}
		return nil
	})
}

func netSysctl(key string) bool {
	return strings.HasPrefix(key, "net.") || strings.HasPrefix(key, "net/")
}

func setSysctl(key, value string) error {
	name := key
	if !strings.Contains(key, "/") {
		name = strings.ReplaceAll(key, ".", "/")
	}
	if err := os.WriteFile(filepath.Join("/proc/sys", filepath.Clean("/"+name)), []byte(value), 0o644); err != nil {
		return fault.New(fault.Invalid, "sysctl %s = %s: %w", key, value, err)
	}
	return nil
}

// NetPath is the pinned network namespace, empty with a host network.
func (h *Hands) NetPath(s *state.Sandbox) string {
	if s.HostNetwork {
		return ""
	}
	return filepath.Join(h.Pins(s.ID), string(netns.Net))
}

// PinPaths is what a container of the sandbox enters.
func (h *Hands) PinPaths(s *state.Sandbox) map[specs.LinuxNamespaceType]string {
	out := map[specs.LinuxNamespaceType]string{}
	dir := h.Pins(s.ID)
	if !s.HostNetwork {
		out[specs.NetworkNamespace] = filepath.Join(dir, string(netns.Net))
		out[specs.UTSNamespace] = filepath.Join(dir, string(netns.UTS))
	}
	if !s.HostIPC {
		out[specs.IPCNamespace] = filepath.Join(dir, string(netns.IPC))
	}
	if users(s) != nil {
		out[specs.UserNamespace] = filepath.Join(dir, string(netns.User))
	}
	return out
}

// WriteFiles makes hosts, hostname and resolv.conf, which need the pod's addresses.
func (h *Hands) WriteFiles(s *state.Sandbox) error {
	dir := h.Shared(s.ID)
	hosts, err := hostsFile(s)
	if err != nil {
		return err
	}
	resolv, err := resolvFile(s.Config.GetDnsConfig())
	if err != nil {
		return err
	}
	ids := users(s)
	for name, text := range map[string]string{"hosts": hosts, "hostname": s.Hostname + "\n", "resolv.conf": resolv} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("sandbox file: %w", err)
		}
		step.At("sandbox file written")
		if ids != nil {
			if err := os.Chown(filepath.Join(dir, name), int(ids.UID), int(ids.GID)); err != nil {
				return fmt.Errorf("sandbox file: %w", err)
			}
		}
	}
	return nil
}

// Files are the paths that WriteFiles and MakeSandbox filled.
func (h *Hands) Files(s *state.Sandbox) plan.Files {
	dir := h.Shared(s.ID)
	f := plan.Files{Hosts: filepath.Join(dir, "hosts"), Hostname: filepath.Join(dir, "hostname"), Resolv: filepath.Join(dir, "resolv.conf"), Shm: filepath.Join(dir, "shm")}
	if s.HostIPC {
		f.Shm = "/dev/shm"
	}
	return f
}

func hostsFile(s *state.Sandbox) (string, error) {
	if s.HostNetwork {
		text, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("node's hosts file: %w", err)
		}
		return string(text), nil
	}
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, ip := range s.IPs {
		fmt.Fprintf(&b, "%s\t%s\n", ip, s.Hostname)
	}
	return b.String(), nil
}

// resolvFile writes the request's DNS; without any the node's own is what the pod gets.
func resolvFile(c *cri.DNSConfig) (string, error) {
	if len(c.GetServers()) == 0 && len(c.GetSearches()) == 0 && len(c.GetOptions()) == 0 {
		text, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("node's resolv.conf: %w", err)
		}
		return string(text), nil
	}
	var b strings.Builder
	if len(c.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.GetSearches(), " "))
	}
	for _, server := range c.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(c.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.GetOptions(), " "))
	}
	return b.String(), nil
}

// RemoveSandbox takes away what MakeSandbox and WriteFiles made. Repeat: safe, also for an id that never was.
func (h *Hands) RemoveSandbox(id string) error {
	dir := h.Shared(id)
	shm := filepath.Join(dir, "shm")
	if _, err := os.Lstat(shm); err == nil {
		if err := mount.Detach(shm); err != nil {
			return err
		}
		step.At("shm unmounted")
	}
	if err := netns.Unpin(h.Pins(id)); err != nil {
		return err
	}
	step.At("namespaces unpinned")
	if err := mount.Clear(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("sandbox folder: %w", err)
	}
	step.At("sandbox folder removed")
	return nil
}
