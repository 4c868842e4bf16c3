// Package leftover removes the iptables chains that kube-proxy has left in the kernel, in any of
// its modes. Nobody else's rules are touched: a chain that another program's rule leads to stays, and is named.
package leftover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// chains are kube-proxy's, by table; a dash at the end stands for all that begin so. The kubelet's own (KUBE-FIREWALL,
// KUBE-KUBELET-CANARY) are not among them. Source: Kubernetes 1.37 pkg/proxy/iptables and pkg/proxy/ipvs, cleanup.
var chains = map[string][]string{
	"nat": {"KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-PROXY-CANARY", "KUBE-NODE-PORT", "KUBE-LOAD-BALANCER",
		"KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"},
	"filter": {"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY",
		"KUBE-NODE-PORT", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER"},
	"mangle": {"KUBE-PROXY-CANARY"},
}

// builtin are the chains in which kube-proxy puts the jumps to its own.
var builtin = []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

func ours(table, chain string) bool {
	return slices.ContainsFunc(chains[table], func(name string) bool {
		return chain == name || strings.HasSuffix(name, "-") && strings.HasPrefix(chain, name)
	})
}

// removal turns what iptables-save says of a table into what iptables-restore --noflush must be told so that kube-proxy's
// chains go, in one transaction. Empty: there are none. kept are chains that a rule of somebody else leads to.
func removal(table string, saved []byte) (script string, kept []string) {
	var have []string
	type jump struct{ from, to, line string }
	var jumps []jump
	for line := range strings.Lines(string(saved)) {
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, ":") && ours(table, fields[0][1:]):
			have = append(have, fields[0][1:])
		case strings.HasPrefix(line, "[") && len(fields) > 1: // counters, if somebody asked for them
			line, fields = strings.TrimPrefix(line, fields[0]+" "), fields[1:]
			fallthrough
		case strings.HasPrefix(line, "-A ") && len(fields) > 1:
			for i, f := range fields[:len(fields)-1] {
				if (f == "-j" || f == "-g") && ours(table, fields[i+1]) {
					jumps = append(jumps, jump{fields[1], fields[i+1], line})
				}
			}
		}
	}
	// A chain that a foreign rule leads to cannot go, nor can those that it leads to itself.
	stay := map[string]bool{}
	for again := true; again; {
		again = false
		for _, j := range jumps {
			foreign := !ours(table, j.from) && !slices.Contains(builtin, j.from)
			if (foreign || stay[j.from]) && !stay[j.to] {
				stay[j.to], again = true, true
			}
		}
	}
	var flush, unlink, remove strings.Builder
	for _, c := range have {
		if stay[c] {
			kept = append(kept, c)
			continue
		}
		fmt.Fprintf(&flush, ":%s - [0:0]\n", c)
		fmt.Fprintf(&remove, "-X %s\n", c)
	}
	if flush.Len() == 0 {
		return "", kept
	}
	for _, j := range jumps {
		if slices.Contains(builtin, j.from) && !stay[j.to] {
			unlink.WriteString("-D" + strings.TrimPrefix(j.line, "-A") + "\n")
		}
	}
	return "*" + table + "\n" + flush.String() + unlink.String() + remove.String() + "COMMIT\n", kept
}

// tools are the programs that there may be: one for each family and kind of iptables. A machine without the variants has
// only the plain names.
var tools = [][]string{{"iptables-nft", "iptables-legacy"}, {"ip6tables-nft", "ip6tables-legacy"}}

const patience = 30 * time.Second

// IPTables removes kube-proxy's chains in the network namespace of the calling thread, by whatever iptables is installed;
// with none there is nothing to do, as then nobody can have made such rules. Safe to repeat.
func IPTables(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var errs []error
	for _, tool := range installed() {
		for _, table := range []string{"nat", "filter", "mangle"} {
			if err := clean(ctx, tool, table); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// Found names the programs by which kube-proxy's Services are in iptables.
func Found(ctx context.Context) (by []string) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, tool := range installed() {
		if strings.Contains(string(save(ctx, tool, "nat")), ":KUBE-SERVICES ") {
			by = append(by, tool)
		}
	}
	return by
}

func installed() (all []string) {
	for _, variants := range tools {
		before := len(all)
		plain, _, _ := strings.Cut(variants[0], "-")
		for _, tool := range append(slices.Clone(variants), plain) {
			if _, err := exec.LookPath(tool + "-save"); err == nil && (tool != plain || len(all) == before) {
				all = append(all, tool)
			}
		}
	}
	return all
}

// save reads a table; nothing if the kernel has no such table, or not this kind of iptables.
func save(ctx context.Context, tool, table string) []byte {
	if family, legacy := strings.CutSuffix(tool, "tables-legacy"); legacy { // it would make a table by looking at it
		names, err := os.ReadFile("/proc/thread-self/net/" + family + "_tables_names")
		if err != nil || !slices.Contains(strings.Fields(string(names)), table) {
			return nil
		}
	}
	saved, err := exec.CommandContext(ctx, tool+"-save", "-t", table).Output()
	if err != nil {
		return nil
	}
	return saved
}

func clean(ctx context.Context, tool, table string) error {
	script, kept := removal(table, save(ctx, tool, table))
	if len(kept) > 0 {
		slog.Warn("chains of kube-proxy stay, as other rules lead to them", "by", tool, "table", table, "chains", kept)
	}
	if script == "" {
		return nil
	}
	cmd := exec.CommandContext(ctx, tool+"-restore", "--noflush")
	cmd.Stdin = strings.NewReader(script)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("remove kube-proxy's chains from table %s by %s: %w: %s", table, tool, err, strings.TrimSpace(said.String()))
	}
	slog.Info("removed what kube-proxy had left", "by", tool, "table", table, "chains", strings.Count(script, "\n-X "))
	return nil
}
