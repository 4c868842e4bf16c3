// Package cdi turns names of CDI devices into what they change in a container.
//
// The specifications are read anew for every container that names a device: few do, the folders hold a handful of small
// files, and so a device that appeared a moment ago is found, nothing is watched, and nothing is kept in memory.
// Source: CDI specification 1.1, github.com/cncf-tags/container-device-interface.
package cdi

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"worknode/fault"
)

// DefaultDirs is where specifications lie; a later folder wins.
var DefaultDirs = []string{"/etc/cdi", "/var/run/cdi"}

// Asked lists the devices that a request names: in its own field, and in annotations, as device plugins of old do.
// Errors: Invalid for what is no name of a device.
func Asked(field []string, annotations map[string]string) ([]string, error) {
	out := slices.Clone(field)
	_, old, err := cdi.ParseAnnotations(annotations)
	if err != nil {
		return nil, fault.New(fault.Invalid, "annotation of CDI devices: %w", err)
	}
	for _, name := range old {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	for _, name := range out {
		if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
			return nil, fault.Hint(fault.New(fault.Invalid, "CDI device %q: %w", name, err), "a name is VENDOR/CLASS=DEVICE")
		}
	}
	return out, nil
}

// Edits is what devices change in a container with this user and, perhaps, a user namespace: a spec that holds nothing else.
// Errors: NotFound for devices that no specification in dirs names, with the files that could not be read; Invalid for
// devices that two files define, or whose node is not on this machine.
func Edits(dirs, devices []string, user specs.User, mapped bool) (specs.Spec, error) {
	spec := specs.Spec{Process: &specs.Process{User: specs.User{UID: user.UID, GID: user.GID}}, Linux: &specs.Linux{}}
	if mapped {
		spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace}}
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return spec, fmt.Errorf("CDI: %w", err)
	}
	missing, err := cache.InjectDevices(&spec, devices...)
	switch {
	case len(missing) > 0:
		err = fault.New(fault.NotFound, "CDI device %s: no specification in %s defines it%s",
			strings.Join(missing, ", "), strings.Join(dirs, ", "), unread(cache))
		return spec, fault.Hint(err, "its device plugin or DRA driver writes one; is it running?")
	case err != nil:
		return spec, fault.New(fault.Invalid, "CDI device %s: %w", strings.Join(devices, ", "), err)
	}
	spec.Linux.Namespaces = nil
	return spec, nil
}

// unread tells which files are of no use and why, since a missing device is probably in one of them.
func unread(cache *cdi.Cache) string {
	var all []error
	for _, errs := range cache.GetErrors() {
		all = append(all, errs...)
	}
	if err := errors.Join(all...); err != nil {
		return ", but " + strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return ""
}
