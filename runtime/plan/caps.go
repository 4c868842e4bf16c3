package plan

import (
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/oci/capability"
)

// defaultCaps are the fourteen that container runtimes agree on.
const defaultCaps = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<13 | 1<<18 | 1<<27 | 1<<29 | 1<<31

// capabilities applies add and drop to the defaults. ALL is applied before single names, so that add ALL drop X and
// drop ALL add X both mean what they say. Capabilities the node lacks cannot be given and are left out.
// Source: CRI Capability; kubelet sends names without CAP_.
func capabilities(sc *cri.LinuxContainerSecurityContext, host uint64) (*specs.LinuxCapabilities, error) {
	mask, ambient := uint64(defaultCaps), uint64(0)
	if sc.GetPrivileged() {
		mask = capability.All
	} else {
		c := sc.GetCapabilities()
		if hasAll(c.GetAddCapabilities()) {
			mask = capability.All
		}
		if hasAll(c.GetDropCapabilities()) {
			mask = 0
		}
		add, err := named(c.GetAddCapabilities())
		if err != nil {
			return nil, err
		}
		drop, err := named(c.GetDropCapabilities())
		if err != nil {
			return nil, err
		}
		if ambient, err = named(c.GetAddAmbientCapabilities()); err != nil {
			return nil, err
		}
		mask = (mask | add | ambient) &^ drop
		ambient &= mask
	}
	mask &= host
	names := capability.List(mask)
	out := &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
	if ambient &= host; ambient != 0 {
		out.Ambient = capability.List(ambient)
		out.Inheritable = out.Ambient
	}
	return out, nil
}

func hasAll(names []string) bool {
	for _, n := range names {
		if strings.EqualFold(n, "ALL") || strings.EqualFold(n, "CAP_ALL") {
			return true
		}
	}
	return false
}

func named(names []string) (mask uint64, err error) {
	for _, n := range names {
		if hasAll([]string{n}) {
			continue
		}
		bit, ok := capability.Bit(n)
		if !ok {
			return 0, fault.New(fault.Invalid, "capability %q is unknown", n)
		}
		mask |= 1 << bit
	}
	return mask, nil
}
