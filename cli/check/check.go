// Package check says what a machine lacks to be a node, and what to do about it. It changes nothing.
package check

import (
	"fmt"
	"strings"
)

// State is how a check ended.
type State string

const (
	OK   State = "ok"
	Warn State = "warn" // the node works, something will not
	Fail State = "fail" // the node does not work
)

// Result is what one check found. Remedy is empty if all is well.
type Result struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Says   string `json:"says"`
	Remedy string `json:"remedy,omitempty"`
}

// Check is one question to the machine. It may give several results, and none if it does not apply.
type Check struct {
	Name string
	Ask  func(Where) []Result
}

// Where is what the checks are about.
type Where struct {
	Root       string   // where images will be; its nearest parent that is there is looked at
	CNIConfDir string   // empty: no CNI
	CNIBinDirs []string // where plugins are
}

// Set is a group of checks that a flag of `worknode check` asks for; the one without a flag is always asked.
type Set struct {
	Flag, Usage string
	List        []Check
}

// Run asks all, in their order.
func Run(w Where, list []Check) (out []Result) {
	for _, c := range list {
		for _, r := range c.Ask(w) {
			if r.Name == "" {
				r.Name = c.Name
			}
			out = append(out, r)
		}
	}
	return out
}

func ok(format string, args ...any) Result {
	return Result{State: OK, Says: fmt.Sprintf(format, args...)}
}

func warn(remedy, format string, args ...any) Result {
	return Result{State: Warn, Says: fmt.Sprintf(format, args...), Remedy: remedy}
}

func fail(remedy, format string, args ...any) Result {
	return Result{State: Fail, Says: fmt.Sprintf(format, args...), Remedy: remedy}
}

func one(r Result) []Result { return []Result{r} }

func list(names []string) string { return strings.Join(names, ", ") }
