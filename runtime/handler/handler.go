// Package handler knows the runtime handlers beside the native one: other OCI runtimes (runc, crun, youki, runsc), each
// called by its command line. It builds commands and runs the short ones; those that make a process are the monitor's to
// run, as the process must be its child. It chooses nothing: a handler that is not known is never replaced by another.
// Source: opencontainers/runtime-tools, docs/command-line-interface.md; runc(8); CRI RunPodSandboxRequest.runtime_handler.
package handler

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"worknode/fault"
)

// Config is one handler, as an operator names it.
type Config struct {
	Name          string   `json:"name"`          // what a RuntimeClass calls it
	Path          string   `json:"path"`          // its program, absolute
	Root          string   `json:"root"`          // where it keeps its records; empty: a folder of ours, on tmpfs
	SystemdCgroup bool     `json:"systemdCgroup"` // refused: pods' cgroups are made without systemd
	Args          []string `json:"args"`          // options in front of the command
}

// Limit bounds every command: a handler that hangs holds up its own containers and nobody else.
const Limit = 12 * time.Second

// Parse reads NAME=PATH[ ARGS...] of a flag.
func Parse(text string) (Config, error) {
	name, rest, ok := strings.Cut(text, "=")
	words := strings.Fields(rest)
	if !ok || len(words) == 0 {
		return Config{}, fault.New(fault.Invalid, "handler %q is not NAME=PATH", text)
	}
	return Config{Name: name, Path: words[0], Args: words[1:]}, nil
}

// Check holds a list of handlers to what can work. Errors: Invalid, Unsupported, naming the handler.
func Check(list []Config) error {
	seen := map[string]bool{}
	for _, c := range list {
		switch {
		case c.Name == "" || strings.ContainsAny(c.Name, "/ \x00") || len(c.Name) > 63:
			return fault.New(fault.Invalid, "handler %q: not a name of 1 to 63 letters without spaces and slashes", c.Name)
		case seen[c.Name]:
			return fault.New(fault.Invalid, "handler %s is there twice", c.Name)
		case !filepath.IsAbs(c.Path):
			return fault.New(fault.Invalid, "handler %s: path %q is not absolute", c.Name, c.Path)
		case c.SystemdCgroup:
			return fault.Hint(fault.New(fault.Unsupported, "handler %s: pods' cgroups are made without systemd", c.Name), "leave systemd-cgroup out")
		}
		seen[c.Name] = true
	}
	return nil
}

// Command is a command line of the handler. log is where it reports errors, empty for none.
func (c Config) Command(log string, words ...string) []string {
	line := append([]string{c.Path, "--root", c.Root}, c.Args...)
	if log != "" {
		line = append(line, "--log", log, "--log-format", "json")
	}
	return slices.Concat(line, words)
}

// Env is all of a command's environment.
func Env() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "XDG_RUNTIME_DIR="}
}

// Run runs a short command to its end.
// Errors: Temporary if it hangs; Unknown with what it said.
func (c Config) Run(ctx context.Context, words ...string) ([]byte, error) {
	ctx, stop := context.WithTimeout(ctx, Limit)
	defer stop()
	line := c.Command("", words...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env, cmd.WaitDelay = Env(), time.Second
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, fault.New(fault.Temporary, "handler %s: %s takes longer than %v", c.Name, words[0], Limit)
	case err != nil:
		return nil, fmt.Errorf("handler %s: %s: %w: %s", c.Name, words[0], err, strings.TrimSpace(tail(said.String())))
	}
	return out.Bytes(), nil
}

func tail(text string) string { return text[max(0, len(text)-2048):] }

// Features are those of a handler that a pod's spec may need.
type Features struct {
	RecursiveReadOnly bool
}

// Probe asks a handler what it can do. Handlers older than the command (runc 1.1) answer with an error.
func (c Config) Probe(ctx context.Context) (Features, error) {
	text, err := c.Run(ctx, "features")
	if err != nil {
		return Features{}, err
	}
	var f features.Features
	if err := json.Unmarshal(text, &f); err != nil {
		return Features{}, fault.New(fault.Invalid, "handler %s: features: %w", c.Name, err)
	}
	return Features{RecursiveReadOnly: slices.Contains(f.MountOptions, "rro")}, nil
}
