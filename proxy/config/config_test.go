package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	upstream "k8s.io/kube-proxy/config/v1alpha1"
	"sigs.k8s.io/yaml"
)

// Our types have upstream's fields, each with the same name in JSON and the same kind of value.
func TestTypesAreUpstreams(t *testing.T) {
	var compare func(path string, ours, theirs reflect.Type)
	compare = func(path string, ours, theirs reflect.Type) {
		if ours.Kind() == reflect.Pointer && theirs.Kind() == reflect.Pointer {
			ours, theirs = ours.Elem(), theirs.Elem()
		}
		switch { // ours differ in Go and are the same in JSON
		case strings.HasSuffix(theirs.Name(), "Duration") || theirs.Name() == "QuantityValue":
			if ours.Name() != "Duration" && ours.Name() != "FlushFrequency" && ours.Name() != "Quantity" {
				t.Errorf("%s: ours is a %s, upstream's a %s", path, ours, theirs)
			}
			return
		case ours.Kind() != theirs.Kind():
			t.Errorf("%s: ours is a %s, upstream's a %s", path, ours, theirs)
			return
		case ours.Kind() == reflect.Slice:
			compare(path+"[]", ours.Elem(), theirs.Elem())
			return
		case ours.Kind() != reflect.Struct:
			return
		}
		mine, others := flat(ours), flat(theirs)
		for name, f := range others {
			m, ok := mine[name]
			if !ok {
				t.Errorf("%s.%s is missing", path, name)
				continue
			}
			if a, b := m.Tag.Get("json"), f.Tag.Get("json"); a != b {
				t.Errorf("%s.%s: tag %q, upstream's %q", path, name, a, b)
			}
			compare(path+"."+name, m.Type, f.Type)
		}
		for name := range mine {
			if _, ok := others[name]; !ok {
				t.Errorf("%s.%s is not upstream's", path, name)
			}
		}
	}
	compare("", reflect.TypeFor[Configuration](), reflect.TypeFor[upstream.KubeProxyConfiguration]())
}

// flat is a struct's fields by JSON name, those of embedded structs among them.
func flat(t reflect.Type) map[string]reflect.StructField {
	all := map[string]reflect.StructField{}
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			for name, inner := range flat(f.Type) {
				all[name] = inner
			}
			continue
		}
		all[jsonName(f)] = f
	}
	return all
}

// What we write, upstream's types read, and write the same.
func TestDefaultsRoundTripThroughUpstreamsTypes(t *testing.T) {
	ours, err := json.Marshal(Default())
	if err != nil {
		t.Fatal(err)
	}
	var theirs upstream.KubeProxyConfiguration
	if err := yaml.UnmarshalStrict(ours, &theirs); err != nil {
		t.Fatal(err)
	}
	back, err := json.Marshal(&theirs)
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if json.Unmarshal(ours, &a) != nil || json.Unmarshal(back, &b) != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("ours\n%s\nupstream's\n%s", ours, back)
	}
}

const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

// Source of the values: pkg/proxy/apis/config/v1alpha1/defaults_test.go and the research's table.
func TestDefaults(t *testing.T) {
	for _, c := range []struct{ name, text, field, want string }{
		{"bind address", "", "bindAddress", `"0.0.0.0"`},
		{"healthz", "", "healthzBindAddress", `"0.0.0.0:10256"`},
		{"metrics", "", "metricsBindAddress", `"127.0.0.1:10249"`},
		{"healthz of an IPv6 node", "bindAddress: 'fd00::1'", "healthzBindAddress", `"[::]:10256"`},
		{"metrics of an IPv6 node", "bindAddress: 'fd00::1'", "metricsBindAddress", `"[::1]:10249"`},
		{"healthz without a port", "healthzBindAddress: 192.0.2.1", "healthzBindAddress", `"192.0.2.1:10256"`},
		{"metrics without a port", "metricsBindAddress: 'fd00:1::5'", "metricsBindAddress", `"[fd00:1::5]:10249"`},
		{"healthz with a port", "healthzBindAddress: 192.0.2.1:9090", "healthzBindAddress", `"192.0.2.1:9090"`},
		{"mode stays open", "", "mode", `""`},
		{"masquerade bit", "", "iptables.masqueradeBit", "14"},
		{"sync", "nftables: {syncPeriod: 0s}", "nftables.syncPeriod", `"30s"`},
		{"least sync", "", "nftables.minSyncPeriod", `"1s"`},
		{"least sync of ipvs", "", "ipvs.minSyncPeriod", `"0s"`},
		{"conntrack", "", "conntrack.maxPerCore", "32768"},
		{"conntrack at least", "", "conntrack.min", "131072"},
		{"established", "", "conntrack.tcpEstablishedTimeout", `"24h0m0s"`},
		{"zero is not the default", "conntrack: {tcpEstablishedTimeout: 0s}", "conntrack.tcpEstablishedTimeout", `"0s"`},
		{"close wait", "", "conntrack.tcpCloseWaitTimeout", `"1h0m0s"`},
		{"oom", "", "oomScoreAdj", "-999"},
		{"client", "", "clientConnection.burst", "10"},
		{"logs", "", "logging.flushFrequency", `"5s"`},
		{"logs by number", "logging: {flushFrequency: 7000000000}", "logging.flushFrequency", "7000000000"},
		{"config sync", "", "configSyncPeriod", `"15m0s"`},
		{"null is not set", "oomScoreAdj: null\nconfigSyncPeriod: null", "configSyncPeriod", `"15m0s"`},
		{"JSON too", "", "kind", `"KubeProxyConfiguration"`},
	} {
		l, err := Parse("f", []byte(head+c.text), false)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got, _ := json.Marshal(l.at(c.field).Interface())
		if string(got) != c.want {
			t.Errorf("%s: %s is %s, want %s", c.name, c.field, got, c.want)
		}
	}
}

// Each mistake is named with its file, line and field, and what to write instead.
func TestMistakesAreNamed(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"mode: userspace", `f:3: mode: "userspace": must be iptables, ipvs or nftables, or empty`},
		{"iptables:\n  masqueradeBit: 32", "f:4: iptables.masqueradeBit: 32: must be a bit from 0 to 31"},
		{"mode: nftables\nnftables:\n  masqueradeBit: -1", "f:5: nftables.masqueradeBit: -1: must be a bit"},
		{"mode: nftables\nnftables: {syncPeriod: -1s}", "f:4: nftables.syncPeriod: -1s: must be more than zero"},
		{"iptables: {minSyncPeriod: -5s}", "iptables.minSyncPeriod: -5s: must be zero or more"},
		{"iptables: {minSyncPeriod: 40s}", "iptables.syncPeriod: 30s: must be at least iptables.minSyncPeriod, which is 40s"},
		{"iptables: {syncPeriod: 10}", "f:3: iptables.syncPeriod: 10: want a duration with its unit, such as 30s"},
		{"iptables: {syncPeriod: soon}", `f:3: iptables.syncPeriod: "soon": want a duration`},
		{"iptables: {masqueradeBits: 3}", `f:3: unknown field "iptables.masqueradeBits" (did you mean iptables.masqueradeBit?)`},
		{"bindadress: 0.0.0.0", `f:3: unknown field "bindadress" (did you mean bindAddress?)`},
		{"BindAddress: 0.0.0.0", `unknown field "BindAddress" (did you mean bindAddress?)`},
		{"mode: nftables\nmode: iptables", "f:4: key \"mode\" already set"},
		{"oomScoreAdj: high", "f:3: oomScoreAdj: it is a string, want int32"},
		{"oomScoreAdj: -1001", "f:3: oomScoreAdj: -1001: must be from -1000 to 1000"},
		{"oomScoreAdj: 3000000000", "oomScoreAdj"},
		{"bindAddress: ::", "mapping values are not allowed"},
		{"bindAddress: node-1", `f:3: bindAddress: "node-1": want an IP address`},
		{"healthzBindAddress: localhost:10256", `healthzBindAddress: "localhost": want an IP address before the port`},
		{"healthzBindAddress: 0.0.0.0:0", `healthzBindAddress: "0": want a port from 1 to 65535`},
		{"metricsBindAddress: 10249", "metricsBindAddress"},
		{"metricsBindAddress: '10249'", `metricsBindAddress: "10249": want ADDRESS:PORT`},
		{"clusterCIDR: 10.0.0.0/33", `clusterCIDR[0]: "10.0.0.0/33": want a prefix`},
		{"clusterCIDR: 10.0.0.0/8,pods", `clusterCIDR[1]: "pods": want a prefix`},
		{"detectLocalMode: ClusterCidr", `detectLocalMode: "ClusterCidr": must be ClusterCIDR, NodeCIDR`},
		{"detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface: it is not set"},
		{"detectLocalMode: InterfaceNamePrefix", "detectLocal.interfaceNamePrefix: it is not set"},
		{"nodePortAddresses: [primary, primary]", `f:3: nodePortAddresses[1]: "primary": it is there already`},
		{"nodePortAddresses: [192.0.2.1]", `nodePortAddresses[0]: "192.0.2.1": want a prefix`},
		{"nodePortAddresses: primary", "f:3: nodePortAddresses: it is a string, want"},
		{"conntrack: {maxPerCore: -1}", "conntrack.maxPerCore: -1: must be zero or more"},
		{"conntrack: {tcpEstablishedTimeout: -1s}", "conntrack.tcpEstablishedTimeout: -1s: must be zero or more"},
		{"conntrack: {udpStreamTimeout: -1s}", "conntrack.udpStreamTimeout: -1s"},
		{"clientConnection: {burst: -5}", "clientConnection.burst: -5"},
		{"configSyncPeriod: -1s", "configSyncPeriod: -1s: must be more than zero"},
		{"mode: ipvs\nipvs: {tcpTimeout: -1s}", "ipvs.tcpTimeout: -1s"},
		{"mode: ipvs\nipvs: {excludeCIDRs: [x]}", `ipvs.excludeCIDRs[0]: "x"`},
		{"mode: ipvs\nfeatureGates: {KubeProxyIPVS: false}", "mode: ipvs: the feature gate KubeProxyIPVS is off"},
		{"featureGates: {NFTablesProxyMode: false}", "featureGates.NFTablesProxyMode: false: this feature is locked to true"},
		{"featureGates: {NFTablesNetlink: maybe}", "featureGates"},
		{"showHiddenMetricsForVersion: '1.35'", `showHiddenMetricsForVersion: "1.35": must be 1.36`},
		{"logging: {format: xml}", `logging.format: "xml": must be text or json`},
		{"logging: {options: {text: {splitStream: true}}}", "logging.options.text: the feature gate LoggingAlphaOptions is off"},
		{"logging: {vmodule: [{filePattern: 'a=b', verbosity: 1}]}", "logging.vmodule[0]: filePattern"},
	} {
		_, err := Parse("f", []byte(head+c.text), false)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q:\n got  %v\n want %s", c.text, err, c.want)
		}
	}
	for _, text := range []string{"", "# nothing", "- a", "kind: KubeProxyConfiguration", "apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration", "{", strings.Repeat("x", most+1)} {
		if _, err := Parse("f", []byte(text), true); err == nil {
			t.Errorf("%.20q is accepted", text)
		}
	}
	// All that is wrong is said at once.
	if _, err := Parse("f", []byte(head+"mode: x\noomScoreAdj: 2000"), false); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two mistakes: %v", err)
	}
}

// As kube-proxy 1.37: unknown and repeated fields cost a warning, wrong values an error.
func TestLenientPassesOverWhatItDoesNotKnow(t *testing.T) {
	l, err := Parse("f", []byte(head+"udpIdleTimeout: 250ms\nmode: iptables\nmode: nftables"), true)
	if err != nil {
		t.Fatal(err)
	}
	if l.Mode != ModeNFTables || !strings.Contains(strings.Join(l.Notices, "\n"), "read leniently: f:5: ") {
		t.Errorf("mode %q, notices %q", l.Mode, l.Notices)
	}
	if _, err := Parse("f", []byte(head+"foo: 1\noomScoreAdj: x"), true); err == nil {
		t.Error("a wrong type is accepted")
	}
}

// What kubeadm writes says nothing that would be without effect.
func TestKubeadmsConfigurationHasNoIdleFields(t *testing.T) {
	l, err := Load("testdata/kubeadm.yaml", false)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"mode: the default mode, iptables, is served by nftables, with the same promises"}
	if !slices.Equal(l.Notices, want) {
		t.Errorf("notices %q", l.Notices)
	}
	if e := l.Effective("n"); e.Settings.MinSync != 0 {
		t.Errorf("0s is the default, not a wish: %s", e.Settings.MinSync)
	}
}

func TestIdleFieldsAreNamedOnce(t *testing.T) {
	l, err := Parse("f", []byte(head+`
mode: nftables
iptables: {masqueradeAll: true}
ipvs: {scheduler: rr, strictARP: true}
winkernel: {enableDSR: true}
clientConnection: {qps: 50}
detectLocal: {bridgeInterface: cni0}
featureGates: {NFTablesNetlink: false, GracefulNodeShutdown: true}
nftables: {minSyncPeriod: 2s}
`), false)
	if err != nil {
		t.Fatal(err)
	}
	want := "set, and without effect on this proxy: clientConnection.qps, detectLocal.bridgeInterface, featureGates.GracefulNodeShutdown, " +
		"featureGates.NFTablesNetlink, iptables.masqueradeAll, ipvs.scheduler, ipvs.strictARP, winkernel"
	if len(l.Notices) != 1 || l.Notices[0] != want {
		t.Errorf("got  %q\nwant %q", l.Notices, want)
	}
}

func parseFlags(args ...string) (*Loaded, error) {
	f := &Flags{}
	fs := pflag.NewFlagSet("proxy", pflag.ContinueOnError)
	f.Add(fs)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	return f.Load()
}

func TestFlags(t *testing.T) {
	for _, c := range []struct{ args, field, want string }{
		{"", "healthzBindAddress", `"0.0.0.0:10256"`},
		{"--bind-address=fd00::1", "healthzBindAddress", `"[::]:10256"`},
		{"--healthz-bind-address=192.0.2.1", "healthzBindAddress", `"192.0.2.1:10256"`},
		{"--healthz-bind-address=192.0.2.1 --healthz-port=99", "healthzBindAddress", `"192.0.2.1:99"`},
		{"--healthz-port=99", "healthzBindAddress", `"0.0.0.0:99"`},
		{"--healthz-port=0", "healthzBindAddress", `""`},
		{"--metrics_port=0", "metricsBindAddress", `""`}, // underscores are dashes
		{"--cluster-cidr=10.1.0.0/16,fd00::/48", "clusterCIDR", `"10.1.0.0/16,fd00::/48"`},
		{"--proxy-mode=ipvs", "mode", `"ipvs"`},
		{"--masquerade-all", "nftables.masqueradeAll", "true"},
		{"--masquerade-all", "iptables.masqueradeAll", "true"},
		{"--iptables-masquerade-bit=3", "iptables.masqueradeBit", "3"},
		{"--iptables-masquerade-bit=3", "nftables.masqueradeBit", "14"},
		{"--iptables-sync-period=7s", "nftables.syncPeriod", `"7s"`},
		{"--conntrack-tcp-timeout-established=0", "conntrack.tcpEstablishedTimeout", `"0s"`},
		{"--conntrack-max-per-core=0", "conntrack.maxPerCore", "0"},
		{"--oom-score-adj=0", "oomScoreAdj", "0"},
		{"--nodeport-addresses=primary,localhost", "nodePortAddresses", `["primary","localhost"]`},
		{"--feature-gates=KubeProxyIPVS=true,NFTablesNetlink=false", "featureGates", `{"KubeProxyIPVS":true,"NFTablesNetlink":false}`},
		{"-v=4", "logging.verbosity", "4"},
		{"--hostname-override=NODE-A", "hostnameOverride", `"node-a"`},
		{"--vmodule=proxy*=5", "logging.vmodule", `[{"filePattern":"proxy*","verbosity":5}]`},
	} {
		l, err := parseFlags(strings.Fields(c.args)...)
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		got, _ := json.Marshal(l.at(c.field).Interface())
		if string(got) != c.want {
			t.Errorf("%s: %s is %s, want %s", c.args, c.field, got, c.want)
		}
	}
	for args, want := range map[string]string{
		"--proxy-mode=userspace":               `command line: mode: "userspace": must be`,
		"--healthz-bind-address=nowhere":       "--healthz-bind-address nowhere: want an IP address",
		"--feature-gates=NFTablesNetlink=soon": "--feature-gates NFTablesNetlink=soon: want true or false",
		"--oom-score-adj=5000":                 "oomScoreAdj: 5000",
		"--bind-address=here":                  `bindAddress: "here"`,
		"--config=/nonexistent/f":              "proxy configuration: open /nonexistent/f",
		"--vmodule=a=b":                        "--vmodule a=b",
	} {
		if _, err := parseFlags(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", args, err, want)
		}
	}
}

// With a file only the node's name and the logs are taken from flags; the others are named.
func TestFileDecidesOverFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(head+"mode: nftables\nhostnameOverride: from-file\nlogging: {verbosity: 2}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := parseFlags("--config="+file, "--proxy-mode=iptables", "--masquerade-all", "--hostname-override=from-flag", "-v=5")
	if err != nil {
		t.Fatal(err)
	}
	if l.Mode != ModeNFTables || l.NFTables.MasqueradeAll || l.HostnameOverride != "from-flag" || l.Logging.Verbosity != 5 {
		t.Errorf("%+v", l.Configuration)
	}
	if want := "ignored, as the configuration file decides: --masquerade-all, --proxy-mode"; !slices.Contains(l.Notices, want) {
		t.Errorf("notices %q", l.Notices)
	}
}

// Every flag of kube-proxy 1.37 is there. Source: cmd/kube-proxy/app/options.go AddFlags.
func TestAllFlagsOfKubeProxy(t *testing.T) {
	fs := pflag.NewFlagSet("proxy", pflag.ContinueOnError)
	(&Flags{}).Add(fs)
	for name := range strings.FieldsSeq(`bind-address bind-address-hard-fail cleanup cluster-cidr config config-sync-period
		conntrack-max-per-core conntrack-min conntrack-tcp-be-liberal conntrack-tcp-timeout-close-wait conntrack-tcp-timeout-established
		conntrack-udp-timeout conntrack-udp-timeout-stream detect-local-mode feature-gates healthz-bind-address healthz-port
		hostname-override init-only iptables-localhost-nodeports iptables-masquerade-bit iptables-min-sync-period iptables-sync-period
		ipvs-exclude-cidrs ipvs-min-sync-period ipvs-scheduler ipvs-strict-arp ipvs-sync-period ipvs-tcp-timeout ipvs-tcpfin-timeout
		ipvs-udp-timeout kube-api-burst kube-api-content-type kube-api-qps kubeconfig log-flush-frequency log-json-info-buffer-size
		log-json-split-stream log-text-info-buffer-size log-text-split-stream logging-format masquerade-all master metrics-bind-address
		metrics-port nodeport-addresses oom-score-adj pod-bridge-interface pod-interface-name-prefix profiling proxy-mode
		show-hidden-metrics-for-version v vmodule write-config-to`) {
		if fs.Lookup(name) == nil {
			t.Errorf("--%s is missing", name)
		}
	}
	// Each flag that sets a field names one that exists.
	c := Default()
	for flag, fields := range fieldsOf {
		if fs.Lookup(flag) == nil {
			t.Errorf("no flag --%s", flag)
		}
		for _, f := range fields {
			c.at(f)
		}
	}
}

// --write-config-to writes what --config reads.
func TestWrittenConfigurationReadsBack(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out.yaml")
	l, err := parseFlags("--proxy-mode=nftables", "--cluster-cidr=10.1.0.0/16")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Write(file); err != nil {
		t.Fatal(err)
	}
	back, err := Load(file, false)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(l.Configuration)
	b, _ := json.Marshal(back.Configuration)
	if string(a) != string(b) {
		t.Errorf("wrote\n%s\nread\n%s", a, b)
	}
}

func FuzzConfiguration(f *testing.F) {
	for _, seed := range []string{head, head + "mode: nftables\niptables: {syncPeriod: 1s}\n", head + "a: &x [*x]\n", head + "<<: {mode: ipvs}\n",
		`{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","conntrack":{"min":1}}`, "- 1", "kind: [", head + "logging: {flushFrequency: 9e99}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		strict, err := Parse("f", data, false)
		if err != nil {
			return
		}
		// What is accepted strictly is accepted leniently, and means the same; its meaning can be told and written.
		lenient, err := Parse("f", data, true)
		if err != nil {
			t.Fatalf("lenient: %v", err)
		}
		a, err := json.Marshal(strict.Configuration)
		b, _ := json.Marshal(lenient.Configuration)
		if err != nil || string(a) != string(b) {
			t.Fatalf("%v\n%s\n%s", err, a, b)
		}
		strict.Effective("n")
	})
}
