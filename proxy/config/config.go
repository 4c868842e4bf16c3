package config

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"worknode/fault"
	"worknode/strict"
)

// Loaded is a configuration that is complete and valid.
type Loaded struct {
	Configuration
	Source  string   // the file, or "command line"
	Notices []string // what a person should know, each said once at the start

	lines strict.Lines    // of the file
	set   map[string]bool // by flags
	asked map[string]bool // periods that somebody gave a value
}

// Set tells whether a field was set, rather than filled in: iptables.minSyncPeriod.
func (l *Loaded) Set(field string) bool { return l.set[field] || l.lines.Find(field) > 0 }

// most bounds the size of a configuration file: ours has forty fields.
const most = 1 << 20

// Load reads and checks a file. lenient passes over unknown and repeated fields with a notice, as kube-proxy 1.37 does;
// otherwise they are errors. Errors: Invalid, one line for each thing that is wrong, with file, line, field and remedy.
func Load(file string, lenient bool) (*Loaded, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.Hint(fmt.Errorf("proxy configuration: %w", err), "name a file that holds a %s", Kind)
	}
	return Parse(file, data, lenient)
}

// Parse is Load with the content at hand; source names it in errors.
func Parse(source string, data []byte, lenient bool) (*Loaded, error) {
	if len(data) > most {
		return nil, fault.New(fault.Invalid, "%s: %d bytes are no proxy configuration (at most %d)", source, len(data), most)
	}
	l := &Loaded{Source: source}
	if err := l.decode(data, lenient); err != nil {
		return nil, err
	}
	if err := l.complete(); err != nil {
		return nil, err
	}
	return l, nil
}

// complete fills in, checks, and notes what has no effect here.
func (l *Loaded) complete() error {
	l.asked = map[string]bool{}
	for _, path := range []string{"iptables.minSyncPeriod", "ipvs.minSyncPeriod", "nftables.minSyncPeriod"} {
		l.asked[path] = l.Set(path) && !l.at(path).IsZero() // kubeadm writes 0s for the default
	}
	fillIn(&l.Configuration)
	k := &checker{source: l.Source, line: l.lines.Find}
	if l.check(k); len(k.wrong) > 0 {
		return fail(k.wrong)
	}
	if l.Mode != ModeNFTables {
		mode := l.Mode
		if mode == "" {
			mode = "the default mode, iptables,"
		}
		l.Notices = append(l.Notices, "mode: "+mode+" is served by nftables, with the same promises")
	}
	if idle := l.idle(); len(idle) > 0 {
		l.Notices = append(l.Notices, "set, and without effect on this proxy: "+strings.Join(idle, ", "))
	}
	return nil
}

// inert are the fields that say nothing to this proxy. (What belongs to a mode that is not chosen is inert too.)
var inert = []string{
	"clientConnection.acceptContentTypes", "clientConnection.contentType", "clientConnection.qps", "clientConnection.burst", // one watch each, no polling: nothing to limit
	"configSyncPeriod", // a watch that loses nothing needs no second look
	"ipvs.scheduler", "ipvs.excludeCIDRs", "ipvs.strictARP", "ipvs.tcpTimeout", "ipvs.tcpFinTimeout", "ipvs.udpTimeout",
	"logging.flushFrequency", "logging.vmodule", "logging.options", // logs are not buffered
	"portRange", "showHiddenMetricsForVersion", "winkernel", "windowsRunAsService",
}

// idle lists the fields that have been given a value of their own, and do nothing.
func (l *Loaded) idle() []string {
	quiet := slices.Clone(inert)
	sections := map[string][]string{
		"iptables": {"masqueradeBit", "masqueradeAll", "localhostNodePorts", "syncPeriod", "minSyncPeriod"},
		"ipvs":     {"syncPeriod", "minSyncPeriod"},
		"nftables": {"masqueradeBit", "masqueradeAll", "syncPeriod", "minSyncPeriod"},
	}
	switch l.Mode {
	case "", ModeIPTables:
		delete(sections, ModeIPTables)
	case ModeNFTables:
		delete(sections, ModeNFTables)
	case ModeIPVS: // it takes the rest from the section iptables
		delete(sections, ModeIPVS)
		sections[ModeIPTables] = []string{"syncPeriod", "minSyncPeriod"}
	}
	for section, fields := range sections {
		for _, f := range fields {
			quiet = append(quiet, section+"."+f)
		}
	}
	switch l.DetectLocalMode {
	case "", LocalClusterCIDR:
		quiet = append(quiet, "detectLocal.bridgeInterface", "detectLocal.interfaceNamePrefix")
	case LocalBridge:
		quiet = append(quiet, "clusterCIDR", "detectLocal.interfaceNamePrefix")
	case LocalPrefix:
		quiet = append(quiet, "clusterCIDR", "detectLocal.bridgeInterface")
	case LocalNodeCIDR:
		quiet = append(quiet, "clusterCIDR", "detectLocal.bridgeInterface", "detectLocal.interfaceNamePrefix")
	}
	usual := Default()
	var found []string
	for _, path := range quiet {
		mine, theirs := l.at(path), usual.at(path)
		// kubeadm writes every field, most of them empty or as they are anyway: that is no wish.
		if !mine.IsZero() && !reflect.DeepEqual(mine.Interface(), theirs.Interface()) {
			found = append(found, path)
		}
	}
	_, moot := l.checkGates()
	found = append(found, moot...)
	slices.Sort(found)
	return found
}
