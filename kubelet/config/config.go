// Package config reads what a kubelet is told: a KubeletConfiguration file, a folder of drop-ins, and the command line, each
// overriding the one before. It decodes strictly, fills in upstream's defaults and refuses what upstream refuses; it opens
// nothing and starts nothing.
// Source: kubelet.config.k8s.io/v1beta1, Kubernetes 1.37.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"worknode/fault"
	"worknode/merge"
	"worknode/strict"
)

// Sources are where the settings come from; each may be empty.
type Sources struct {
	File   string         // --config
	Folder string         // --config-dir: every *.conf below it, in order of path
	Flags  map[string]any // settings from the command line, as a tree of the configuration's fields
}

// Load merges the sources. A later source replaces a value or a whole list of an earlier one; fields of objects merge
// (RFC 7386, as upstream does). Without a file the defaults are the secure ones of this product.
// Errors: Invalid, one for all complaints, each with its file, line or flag, and field.
func Load(s Sources) (*Configuration, error) {
	tree := map[string]any{}
	if s.File == "" {
		tree = secure()
	} else if err := lay(tree, s.File); err != nil {
		return nil, err
	}
	dropins, err := dropins(s.Folder)
	if err != nil {
		return nil, err
	}
	for _, file := range dropins {
		if err := lay(tree, file); err != nil {
			return nil, err
		}
	}
	merge.Merge(tree, s.Flags)
	c := new(Configuration)
	if err := strict.Into(tree, c); err != nil { // each file was checked: the command line is to blame
		return nil, fault.New(fault.Invalid, "command line: %w", err)
	}
	fill(c)
	if err := validate(c); err != nil {
		return nil, fault.New(fault.Invalid, "kubelet configuration %s: %w", where(s), err)
	}
	c.APIVersion, c.Kind = APIVersion, Kind
	return c, nil
}

// secure are settings that hold when nobody wrote a configuration: upstream's defaults for files, which ask every caller of
// the server who it is, and where those are lax, the stricter choice. A machine with cgroup v1 is not turned away.
// Source: CIS Kubernetes Benchmark 4.2.13 and 4.2.14.
func secure() map[string]any {
	return map[string]any{"seccompDefault": true, "podPidsLimit": 4096, "failCgroupV1": false, "failSwapOn": false}
}

// mostBytes bounds a configuration file.
const mostBytes = 1 << 20

// lay lays a file over the tree, once it is sure that the file alone is well formed.
func lay(tree map[string]any, file string) error {
	text, err := os.ReadFile(file)
	if err == nil && len(text) > mostBytes {
		err = fault.New(fault.Invalid, "it has %d bytes, more than the %d of a configuration", len(text), mostBytes)
	}
	if err != nil {
		return fault.Hint(fmt.Errorf("kubelet configuration: %w", err), "name the file with --config")
	}
	one, err := parse(text)
	if err != nil {
		at := file
		if e := new(strict.Error); errors.As(err, &e) && e.Line > 0 {
			at = fmt.Sprintf("%s, line %d", file, e.Line)
		}
		return fault.New(fault.Invalid, "kubelet configuration %s: %w", at, err)
	}
	merge.Merge(tree, one)
	return nil
}

// parse turns one file's text into a tree. Errors are *strict.Error where a line can be blamed.
func parse(text []byte) (map[string]any, error) {
	one, err := strict.Parse(text)
	if err != nil {
		return nil, err
	}
	if v, k := one["apiVersion"], one["kind"]; v != APIVersion || k != Kind {
		return nil, fmt.Errorf("apiVersion %v, kind %v: want %s, %s", v, k, APIVersion, Kind)
	}
	if err := strict.Decode(text, new(Configuration)); err != nil {
		return nil, err
	}
	return one, nil
}

// dropins are the files of a drop-in folder, in the order in which they apply. Only *.conf files count.
func dropins(folder string) ([]string, error) {
	if folder == "" {
		return nil, nil
	}
	var files []string
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Ext(path) == ".conf" {
			files = append(files, path)
		}
		return err
	})
	slices.Sort(files)
	if err != nil {
		return nil, fault.Hint(fmt.Errorf("kubelet drop-in configuration: %w", err), "name an existing folder with --config-dir")
	}
	return files, nil
}

// where names the sources for an error that the merged whole causes.
func where(s Sources) string {
	var from []string
	for _, one := range []string{s.File, s.Folder} {
		if one != "" {
			from = append(from, one)
		}
	}
	if len(s.Flags) > 0 {
		from = append(from, "command line")
	}
	return strings.Join(from, ", ")
}

// JSON is the configuration in force, as /configz shows it. Source: component-base configz.
func JSON(c *Configuration) ([]byte, error) {
	return json.Marshal(map[string]any{"kubeletconfig": c})
}

func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
