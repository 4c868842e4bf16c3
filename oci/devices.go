package oci

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/kernel/cgroup"
	"worknode/monitor/wire"
)

// deviceRules puts a configuration's rules between those that all runtimes have: at first nothing is allowed, and at the
// end the devices that every container has are.
// Source: OCI config-linux.md, "Default Devices" and "Allowed Device list"; runc does the same.
func deviceRules(rules []cgroup.Device) []cgroup.Device {
	out := append([]cgroup.Device{{Major: -1, Minor: -1}}, rules...)
	allow := func(kind string, major, minor int64, access string) {
		out = append(out, cgroup.Device{Allow: true, Type: kind, Major: major, Minor: minor, Access: access})
	}
	allow("c", -1, -1, "m")
	allow("b", -1, -1, "m")
	for _, d := range [...][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}, {136, -1}} {
		allow("c", d[0], d[1], "rwm")
	}
	return out
}

func ociMap(list []wire.IDRange) (out []specs.LinuxIDMapping) {
	for _, r := range list {
		out = append(out, specs.LinuxIDMapping{ContainerID: r.Inside, HostID: r.Host, Size: r.Size})
	}
	return out
}
