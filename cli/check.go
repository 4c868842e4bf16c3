package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"worknode/cli/check"
)

// checkSets are what `worknode check` can ask; a set with a flag is asked when its flag is given.
var checkSets = []check.Set{
	{List: check.Machine()},
}

func (s *session) check() *cobra.Command {
	var where check.Where
	asked := make([]bool, len(checkSets))
	c := &cobra.Command{
		Use: "check", Short: "Say what this machine lacks to be a node, and what to do", Args: cobra.NoArgs,
		Long: `Asks the machine for all that a node needs and changes nothing. Each line is ok, warn (the node works, something will
not) or fail (it does not work), with what to do. The exit code is 1 if anything fails.`,
		RunE: func(c *cobra.Command, _ []string) error {
			var results []check.Result
			for i, set := range checkSets {
				if set.Flag == "" || asked[i] {
					results = append(results, check.Run(where, set.List)...)
				}
			}
			failed := 0
			for _, r := range results {
				if r.State == check.Fail {
					failed++
				}
			}
			if err := s.showChecks(results); err != nil {
				return err
			}
			if failed > 0 {
				return fail(Failed, "%d checks failed", failed)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&where.Root, "image-root", "/var/lib/worknode/runtime", "where images and writable layers will be")
	f.StringVar(&where.CNIConfDir, "cni-conf-dir", "/etc/cni/net.d", "configurations of CNI plugins; empty: do not look")
	f.StringSliceVar(&where.CNIBinDirs, "cni-bin-dir", []string{"/opt/cni/bin"}, "folders of CNI plugins")
	for i, set := range checkSets {
		if set.Flag != "" {
			f.BoolVar(&asked[i], set.Flag, false, set.Usage)
		}
	}
	s.outputFlag(c)
	return c
}

func (s *session) showChecks(results []check.Result) error {
	if s.output == "json" {
		return s.json(results)
	}
	colour := map[check.State]string{check.OK: green, check.Warn: yellow, check.Fail: red}
	for _, r := range results {
		line := fmt.Sprintf("%s  %s: %s", s.paint(colour[r.State], fmt.Sprintf("%-4s", r.State)), r.Name, r.Says)
		if r.Remedy != "" {
			line += "\n      → " + r.Remedy
		}
		if _, err := fmt.Fprintln(s.out, line); err != nil {
			return err
		}
	}
	return nil
}
