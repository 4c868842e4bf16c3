// Package seccomp chooses the profile of a container (Moby's default, or a file in the OCI form or in Moby's form, which
// carries conditions on capabilities, architecture and kernel), has it compiled, and keeps the program by hash.
package seccomp

import (
	"crypto/sha256"
	"strings"
	"sync"

	profiles "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	"worknode/kernel/seccomp"
)

// maxKept bounds the compiled programs kept; a node uses a handful. Each is about two kilobytes.
const maxKept = 64

// maxProfile bounds a profile file, in bytes.
const maxProfile = 1 << 20

// Cache compiles profiles and keeps the programs. The zero value is ready.
type Cache struct {
	mu   sync.Mutex
	kept map[[32]byte]seccomp.Program
}

// Default is the RuntimeDefault profile for a container with these bounding capabilities (CAP_* names).
// It is Moby's: see github.com/moby/profiles/seccomp for what it blocks and why.
func (c *Cache) Default(caps []string) (seccomp.Program, error) {
	return c.get("default", nil, caps, profiles.GetDefaultProfile)
}

// Load is the program of a profile file's content, in the OCI form or with Moby's conditions.
// Errors: Invalid for what is no profile; Unsupported for actions and flags we lack.
func (c *Cache) Load(content []byte, caps []string) (seccomp.Program, error) {
	if len(content) > maxProfile {
		return seccomp.Program{}, fault.New(fault.Invalid, "seccomp profile: %d bytes, the limit is %d", len(content), maxProfile)
	}
	return c.get("load", content, caps, func(s *specs.Spec) (*specs.LinuxSeccomp, error) {
		return profiles.LoadProfile(string(content), s)
	})
}

// Profile is the choice as the OCI runtime spec writes it, for a runtime that compiles by itself: the default profile, or
// with content that of a file.
// Errors: Invalid for what is no profile.
func Profile(content []byte, caps []string) (*specs.LinuxSeccomp, error) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
	var profile *specs.LinuxSeccomp
	var err error
	switch {
	case content == nil:
		profile, err = profiles.GetDefaultProfile(spec)
	case len(content) > maxProfile:
		return nil, fault.New(fault.Invalid, "seccomp profile: %d bytes, the limit is %d", len(content), maxProfile)
	default:
		profile, err = profiles.LoadProfile(string(content), spec)
	}
	return profile, fault.As(fault.Invalid, err)
}

func (c *Cache) get(kind string, content []byte, caps []string, build func(*specs.Spec) (*specs.LinuxSeccomp, error)) (seccomp.Program, error) {
	h := sha256.New()
	h.Write([]byte(kind + "\x00" + strings.Join(caps, ",") + "\x00"))
	h.Write(content)
	key := [32]byte(h.Sum(nil))

	c.mu.Lock()
	defer c.mu.Unlock() // compiling under the lock: thirty pods that start at once need it once
	if p, ok := c.kept[key]; ok {
		return p, nil
	}
	profile, err := build(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		return seccomp.Program{}, fault.New(fault.Invalid, "seccomp profile: %w", err)
	}
	if profile == nil {
		return seccomp.Program{}, nil // an empty profile filters nothing
	}
	p, err := seccomp.Compile(profile)
	if err != nil {
		return seccomp.Program{}, err
	}
	if c.kept == nil || len(c.kept) >= maxKept {
		c.kept = map[[32]byte]seccomp.Program{}
	}
	c.kept[key] = p
	return p, nil
}
