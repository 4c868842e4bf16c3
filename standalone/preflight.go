package standalone

import (
	"fmt"
	"os"
	"strings"

	"worknode/fault"
	"worknode/kernel/cgroup"
	"worknode/kernel/mount"
	"worknode/kernel/nft"
)

// preflight says in one line what this machine lacks to be a node, the first thing missing. It makes nothing: what
// would otherwise fail in the middle of some pod, in some process's log, is told before anything is there.
func preflight() error {
	for _, check := range []func() error{isRoot, hasCgroups, hasOverlay, hasNftables} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func isRoot() error {
	if os.Geteuid() != 0 {
		return fault.New(fault.Denied, "worknode run needs root, to make namespaces, mounts and cgroups (run it with sudo)")
	}
	return nil
}

// hasCgroups wants what every pod is bounded by. Source: kernel cgroup-v2.rst, cgroup.controllers.
func hasCgroups() error {
	tree, err := cgroup.Open()
	if err != nil {
		return fmt.Errorf("this machine cannot bound pods: %w", err)
	}
	if lacks := tree.Lacks("cpu", "memory", "pids"); len(lacks) > 0 {
		return fault.Hint(fault.New(fault.Unsupported, "this machine cannot bound pods: cgroup controllers missing: %s", strings.Join(lacks, ", ")),
			"enable them on the kernel's command line, such as cgroup_enable=memory, or mount their hierarchies")
	}
	return nil
}

// hasOverlay wants the filesystem that containers' roots are.
func hasOverlay() error {
	if err := mount.Supported("overlay"); err != nil {
		return fault.Hint(fmt.Errorf("this machine cannot mount images: %w", err),
			"modprobe overlay, or use a kernel with CONFIG_OVERLAY_FS")
	}
	return nil
}

// hasNftables wants what Services and the pods' network are made of.
func hasNftables() error {
	conn, err := nft.Open()
	if err == nil {
		err = conn.Missing(nft.IPv4)
		conn.Close()
	}
	if err != nil {
		return fmt.Errorf("this machine cannot route to Services: %w", err)
	}
	return nil
}
