package oci

import (
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"worknode/kernel/seccomp"
	"worknode/oci/capability"
	"worknode/oci/spec"
)

// Features is what this runtime can do on this machine. Source: OCI runtime spec, features.md.
func Features() features.Features {
	yes, no := true, false
	apparmor := false
	if text, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil {
		apparmor = len(text) > 0 && text[0] == 'Y'
	}
	_, err := os.Stat("/sys/fs/selinux/enforce")
	selinux := err == nil
	return features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specs.Version,
		Hooks:        []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions: spec.MountOptions(),
		Linux: &features.Linux{
			Namespaces:   []string{"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"},
			Capabilities: capability.List(capability.All),
			Cgroup:       &features.Cgroup{V1: &yes, V2: &yes, Systemd: &no, SystemdUser: &no, Rdma: &yes},
			Seccomp: &features.Seccomp{Enabled: &yes, Actions: seccomp.Actions(), Operators: seccomp.Operators(), Archs: seccomp.Archs(),
				KnownFlags: seccomp.Flags(), SupportedFlags: seccomp.Flags()},
			Apparmor: &features.Apparmor{Enabled: &apparmor},
			Selinux:  &features.Selinux{Enabled: &selinux},
			IntelRdt: &features.IntelRdt{Enabled: &no},
			MemoryPolicy: &features.MemoryPolicy{
				Modes: []string{string(specs.MpolDefault), string(specs.MpolBind), string(specs.MpolInterleave), string(specs.MpolWeightedInterleave),
					string(specs.MpolPreferred), string(specs.MpolPreferredMany), string(specs.MpolLocal)},
				Flags: []string{string(specs.MpolFNumaBalancing), string(specs.MpolFRelativeNodes), string(specs.MpolFStaticNodes)},
			},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &no},
		},
	}
}

func (c *call) features(f *flags, args []string) error {
	if _, err := f.take(args, 0, 0); err != nil {
		return err
	}
	return show(Features())
}
