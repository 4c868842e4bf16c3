package check

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine are the checks of every node, those first that explain later ones.
func Machine() []Check {
	return []Check{
		{"rights", rights}, {"kernel", kernel}, {"features", features}, {"cgroups", cgroups}, {"nftables", nftables},
		{"image folder", folder}, {"disk", disk}, {"sysctl", sysctls}, {"subordinate ids", subids}, {"cni", plugins}, {"clock", clock},
	}
}

// nearest is the closest parent that exists.
func nearest(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" || dir == "." {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// unfit are file systems that overlayfs refuses as its upper layer. Source: kernel overlayfs document; statfs(2).
var unfit = map[int64]string{unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.NFS_SUPER_MAGIC: "NFS", 0x65735546: "FUSE", unix.V9FS_MAGIC: "9p", unix.MSDOS_SUPER_MAGIC: "FAT"}

// folder tries what layers need: marks that only root sets, and devices.
func folder(w Where) []Result {
	at := nearest(w.Root)
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		return one(fail("", "%s: %v", at, err))
	}
	if name := unfit[fs.Type]; name != "" {
		return one(fail("put the runtime's root on ext4, xfs or btrfs (root in its configuration)", "%s lies on %s, which cannot hold writable layers", at, name))
	}
	dir, err := os.MkdirTemp(at, ".worknode-check-")
	if err != nil {
		return one(fail("make it writable, or choose another root", "%s: %v", at, err))
	}
	defer os.RemoveAll(dir)
	if err := unix.Setxattr(dir, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return one(fail("put the runtime's root on ext4, xfs or btrfs, and run as root of the machine", "%s: no trusted attributes: %v", at, err))
	}
	if err := unix.Mknod(filepath.Join(dir, "w"), unix.S_IFCHR, 0); err != nil {
		return one(fail("mount it without nodev, and run as root of the machine", "%s: no devices: %v", at, err))
	}
	if fs.Flags&unix.ST_NOEXEC != 0 || fs.Flags&unix.ST_NOSUID != 0 {
		return one(warn("mount it without noexec and nosuid", "%s: programs of images do not run as they should", at))
	}
	return one(ok("%s can hold layers", at))
}

func disk(w Where) []Result {
	at := nearest(w.Root)
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		return one(fail("", "%s: %v", at, err))
	}
	free, share := fs.Bavail*uint64(fs.Bsize)>>20, 100*fs.Bavail/max(fs.Blocks, 1)
	switch {
	case free < 512:
		return one(fail("free some space there", "%s has %d MiB free", at, free))
	case share < 15: // where a kubelet begins to remove images
		return one(warn("free some space there: a kubelet removes images at 85 % and pods at 90 %", "%s is %d %% full", at, 100-share))
	case fs.Files > 0 && 100*fs.Ffree/fs.Files < 5:
		return one(warn("remove many small files there", "%s has %d of %d inodes free", at, fs.Ffree, fs.Files))
	}
	return one(ok("%s has %d MiB free", at, free))
}

var knobs = []struct {
	name   string
	atMin  int64
	reason string
}{
	{"net.ipv4.ip_forward", 1, "pods reach nothing beyond the node"},
	{"fs.inotify.max_user_instances", 128, "watching files fails"},
	{"fs.inotify.max_user_watches", 8192, "watching many volumes fails"},
	{"kernel.pid_max", 32768, "few processes fit"},
	{"vm.max_map_count", 65530, "databases in pods complain"},
}

func sysctls(Where) []Result {
	var out []Result
	for _, k := range knobs {
		data, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(k.name, ".", "/"))
		if err != nil {
			continue // a kernel without it
		}
		if v, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err == nil && v < k.atMin {
			out = append(out, warn(fmt.Sprintf("sysctl -w %s=%d, and write it into /etc/sysctl.d", k.name, k.atMin), "%s is %d: %s", k.name, v, k.reason))
		}
	}
	if out == nil {
		out = one(ok("as a node wants them"))
	}
	return out
}

// subids looks for the ranges from which a kubelet gives pods their user namespaces. Without the tool it takes its own.
// Source: Kubernetes docs, "Use a user namespace with a pod".
func subids(Where) []Result {
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		data, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			return one(ok("none configured: the node takes ranges of its own"))
		}
		if err != nil {
			return one(warn("", "%v", err))
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) != 3 || f[0] != "kubelet" {
				continue
			}
			from, err1 := strconv.ParseUint(f[1], 10, 32)
			count, err2 := strconv.ParseUint(f[2], 10, 32)
			if err1 != nil || err2 != nil || from%65536 != 0 || from < 65536 || count < 65536*110 {
				return one(warn("give kubelet a range that begins at a multiple of 65536 and has 65536 ids for each pod", "%s: %s", file, strings.TrimSpace(line)))
			}
		}
	}
	return one(ok("ranges for pods with user namespaces"))
}

// plugins looks at the CNI configuration that would be in force, the first by name, and for the plugins it names.
func plugins(w Where) []Result {
	if w.CNIConfDir == "" {
		return nil
	}
	entries, _ := os.ReadDir(w.CNIConfDir)
	for _, e := range entries {
		if !slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		file := filepath.Join(w.CNIConfDir, e.Name())
		data, err := os.ReadFile(file)
		if err != nil {
			return one(warn("", "%v", err))
		}
		var conf struct {
			Name, Type string
			Plugins    []struct{ Type string }
		}
		if err := json.Unmarshal(data, &conf); err != nil {
			return one(warn("mend or remove it", "%s: %v", file, err))
		}
		names := []string{conf.Type}
		for _, p := range conf.Plugins {
			names = append(names, p.Type)
		}
		var lacks []string
		for _, name := range names {
			there := func(dir string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
			if name != "" && !slices.ContainsFunc(w.CNIBinDirs, there) {
				lacks = append(lacks, name)
			}
		}
		if len(lacks) > 0 {
			return one(warn("install the plugins there (containernetworking-plugins), or let the network add-on do it", "%s wants %s, which is not in %s", file, list(lacks), list(w.CNIBinDirs)))
		}
		return one(ok("%s (%s)", conf.Name, file))
	}
	return one(warn("install a network add-on, or start the runtime with --bridge", "no configuration in %s: only pods with the host's network start", w.CNIConfDir))
}

func clock(Where) []Result {
	if time.Now().Before(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) {
		return one(fail("set it: certificates are not valid yet", "it says %s", time.Now().Format(time.DateOnly)))
	}
	var t unix.Timex
	if state, err := unix.Adjtimex(&t); err == nil && state == unix.TIME_ERROR {
		return one(warn("run chrony or systemd-timesyncd", "nothing keeps it in time with others"))
	}
	return one(ok("in time with others"))
}
