package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
)

const head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"

// sources writes a configuration file and drop-ins ("name" → text) and parses a command line.
func sources(t *testing.T, file string, dropins map[string]string, args ...string) (Sources, error) {
	t.Helper()
	dir := t.TempDir()
	s := Sources{Flags: map[string]any{}}
	if file != "" {
		s.File = filepath.Join(dir, "config.yaml")
		if err := os.WriteFile(s.File, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range dropins {
		s.Folder = filepath.Join(dir, "kubelet.conf.d")
		at := filepath.Join(s.Folder, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	AddFlags(set, s.Flags)
	return s, set.Parse(args)
}

func load(t *testing.T, file string, dropins map[string]string, args ...string) *Configuration {
	t.Helper()
	s, err := sources(t, file, dropins, args...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWithoutConfigurationTheNodeIsSecure(t *testing.T) {
	c := load(t, "", nil)
	if *c.Authentication.Anonymous.Enabled || !*c.Authentication.Webhook.Enabled || c.Authorization.Mode != "Webhook" || c.ReadOnlyPort != 0 {
		t.Errorf("the server is open: %+v, %+v, read-only port %d", c.Authentication, c.Authorization, c.ReadOnlyPort)
	}
	if !*c.SeccompDefault || *c.PodPidsLimit != 4096 || *c.FailCgroupV1 {
		t.Errorf("seccomp %v, pids %d, cgroup v1 refused %v", *c.SeccompDefault, *c.PodPidsLimit, *c.FailCgroupV1)
	}
	if c.ContainerRuntimeEndpoint != Socket || c.EvictionHard["memory.available"] != "100Mi" {
		t.Errorf("socket %s, eviction %v", c.ContainerRuntimeEndpoint, c.EvictionHard)
	}
}

func TestAFileHasUpstreamsDefaults(t *testing.T) {
	c := load(t, head, nil)
	if *c.SeccompDefault || *c.PodPidsLimit != -1 || !*c.FailCgroupV1 || *c.Authentication.Anonymous.Enabled || c.MaxPods != 110 {
		t.Errorf("seccomp %v, pids %d, cgroup v1 refused %v", *c.SeccompDefault, *c.PodPidsLimit, *c.FailCgroupV1)
	}
	if c.NodeStatusReportFrequency.Duration != 5*time.Minute || c.NodeStatusUpdateFrequency.Duration != 10*time.Second {
		t.Errorf("report every %v, update every %v", c.NodeStatusReportFrequency, c.NodeStatusUpdateFrequency)
	}
	c = load(t, head+"nodeStatusUpdateFrequency: 20s\nevictionHard: {pid.available: 5%}\nmaxParallelImagePulls: 3\n", nil)
	if c.NodeStatusReportFrequency.Duration != 20*time.Second {
		t.Errorf("report every %v: it follows the update frequency", c.NodeStatusReportFrequency)
	}
	if len(c.EvictionHard) != 1 {
		t.Errorf("eviction %v: setting one threshold replaces the defaults", c.EvictionHard)
	}
	if *c.SerializeImagePulls {
		t.Error("pulls are serial although three may run")
	}
	c = load(t, head+"mergeDefaultEvictionSettings: true\nevictionHard: {pid.available: 5%}\n", nil)
	if len(c.EvictionHard) != 6 {
		t.Errorf("eviction %v: the defaults were to stay", c.EvictionHard)
	}
}

func TestLaterSourcesWin(t *testing.T) {
	c := load(t, head+"maxPods: 10\nclusterDNS: [10.0.0.1, 10.0.0.2]\nauthentication: {x509: {clientCAFile: /ca}}\nkubeReserved: {cpu: 100m}\n",
		map[string]string{
			"20-b.conf":       head + "maxPods: 30\n",
			"10-a.conf":       head + "maxPods: 20\nclusterDNS: [10.0.0.9]\nauthentication: {webhook: {enabled: false}}\n",
			"sub/30-c.conf":   head + "kubeReserved: {memory: 1Gi}\n",
			"ignored.yaml":    "not a configuration",
			"99-not.conf.bak": "nor this",
		},
		"--max-pods=40", "--register-with-taints=a=b:NoSchedule,c:NoExecute", "--eviction-hard=memory.available<1Gi", "--fail-cgroupv1=false",
		"--feature-gates=A=true,B=false", "--manifest-url-header=x:1,x:2", "--anonymous-auth")
	if c.MaxPods != 40 || len(c.ClusterDNS) != 1 || c.ClusterDNS[0] != "10.0.0.9" {
		t.Errorf("%d pods, DNS %v", c.MaxPods, c.ClusterDNS)
	}
	if c.Authentication.X509.ClientCAFile != "/ca" || *c.Authentication.Webhook.Enabled || !*c.Authentication.Anonymous.Enabled {
		t.Errorf("authentication %+v: objects merge", c.Authentication)
	}
	if c.KubeReserved["cpu"] != "100m" || c.KubeReserved["memory"] != "1Gi" {
		t.Errorf("kubeReserved %v: objects merge", c.KubeReserved)
	}
	want := []v1.Taint{{Key: "a", Value: "b", Effect: "NoSchedule"}, {Key: "c", Effect: "NoExecute"}}
	if len(c.RegisterWithTaints) != 2 || c.RegisterWithTaints[0] != want[0] || c.RegisterWithTaints[1] != want[1] {
		t.Errorf("taints %v", c.RegisterWithTaints)
	}
	if c.EvictionHard["memory.available"] != "1Gi" || *c.FailCgroupV1 || !c.FeatureGates["A"] || c.FeatureGates["B"] {
		t.Errorf("eviction %v, gates %v", c.EvictionHard, c.FeatureGates)
	}
	if h := c.StaticPodURLHeader["x"]; len(h) != 2 {
		t.Errorf("headers %v", c.StaticPodURLHeader)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for _, c := range []struct {
		name, file string
		dropins    map[string]string
		args       []string
		says       []string
	}{
		{"unknown field", head + "maxPod: 3\n", nil, nil, []string{"config.yaml, line 3", `unknown field "maxPod"`}},
		{"wrong case", head + "maxpods: 3\n", nil, nil, []string{"line 3", `unknown field "maxpods"`}},
		{"wrong type", head + "authentication:\n  anonymous:\n    enabled: maybe\n", nil, nil, []string{"line 5", "authentication.anonymous.enabled: it is a string, want bool"}},
		{"twice", head + "maxPods: 3\nmaxPods: 4\n", nil, nil, []string{"line 4", "already set"}},
		{"wrong kind", "apiVersion: v1\nkind: Pod\n", nil, nil, []string{"apiVersion v1, kind Pod", "want kubelet.config.k8s.io/v1beta1, KubeletConfiguration"}},
		{"empty", " ", nil, nil, []string{"config.yaml", "not an object"}},
		{"drop-in", head, map[string]string{"10.conf": head + "port: x\n"}, nil, []string{"10.conf, line 3", "port: it is a string, want int32"}},
		{"all at once", head + "port: 70000\nimageGCLowThresholdPercent: 90\ncgroupDriver: crio\n", nil, nil,
			[]string{"port: 70000 is not between 1 and 65535", "imageGCLowThresholdPercent: 90 is not below", `cgroupDriver: "crio" is none of`}},
		{"enforcement", head + "enforceNodeAllocatable: [pods, kube-reserved]\n", nil, nil, []string{`"kube-reserved" needs kubeReservedCgroup`}},
		{"soft eviction", head + "evictionSoft: {memory.available: 1Gi}\n", nil, nil, []string{"evictionSoft.memory.available: it needs a period"}},
		{"eviction signal", head + "evictionHard: {memory: 1Gi}\n", nil, nil, []string{`evictionHard: "memory" is none of`}},
		{"bad taint", "", nil, []string{"--register-with-taints=a"}, []string{"register-with-taints", "has no effect"}},
		{"bad gate", "", nil, []string{"--feature-gates=A=perhaps"}, []string{"feature-gates", `"perhaps" is neither true nor false`}},
		{"bad flag value", "", nil, []string{"--port=99999999999"}, []string{"command line", "port"}},
		{"shutdown", head + "shutdownGracePeriod: 5s\nshutdownGracePeriodCriticalPods: 10s\n", nil, nil, []string{"shutdownGracePeriodCriticalPods: 10s is more than"}},
		{"cipher", head + "tlsCipherSuites: [ROT13]\n", nil, nil, []string{`tlsCipherSuites: "ROT13" is none of`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := sources(t, c.file, c.dropins, c.args...)
			if err == nil {
				_, err = Load(s)
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range c.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

// Every flag's path leads to a field of the configuration: a misspelt one would be refused when used.
func TestEveryFlagHasItsField(t *testing.T) {
	samples := map[shape]string{text: "x", yesNo: "true", number: "3", seconds: "10s", list: "a,b", pairs: "cpu=1", less: "memory.available<1Gi",
		gates: "A=true", headers: "a:b", taints: "a=b:NoSchedule", memory: "0:memory=1Gi"}
	for name, f := range flags {
		s, err := sources(t, "", nil, "--"+name+"="+samples[f.as])
		if err != nil {
			t.Errorf("--%s: %v", name, err)
			continue
		}
		if _, err := Load(s); err != nil && strings.HasPrefix(err.Error(), "command line: ") {
			t.Errorf("--%s: %v", name, err)
		}
	}
}

func FuzzConfiguration(f *testing.F) {
	f.Add([]byte(head + "maxPods: 3\nevictionHard: {memory.available: 1Gi}\n"))
	f.Add([]byte(head + "registerWithTaints: [{key: a, effect: NoSchedule}]\nreservedMemory: [{numaNode: 0, limits: {memory: 1Gi}}]\n"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		tree, err := parse(text)
		if err != nil {
			return
		}
		Load(Sources{Flags: tree}) // whatever it says, it says it without a panic
	})
}

func TestSettingsWithoutEffectAreNamed(t *testing.T) {
	if got := Unheeded(load(t, head, nil)); len(got) > 0 {
		t.Errorf("defaults: %v", got)
	}
	c := load(t, head+"maxPods: 5\nserializeImagePulls: false\nenableContentionProfiling: true\n", nil)
	if got := strings.Join(Unheeded(c), " "); got != "enableContentionProfiling serializeImagePulls" {
		t.Errorf("got %q", got)
	}
}

// A name that the type does not have would hide nothing and promise something.
func TestHeededFieldsExist(t *testing.T) {
	all := map[string]bool{}
	var collect func(prefix string, of reflect.Type)
	collect = func(prefix string, of reflect.Type) {
		for i := range of.NumField() {
			name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			all[prefix+name] = true
			if of.Field(i).Type.Kind() == reflect.Struct {
				collect(prefix+name+".", of.Field(i).Type)
			}
		}
	}
	collect("", reflect.TypeFor[Configuration]())
	for _, name := range heeded {
		if !all[name] {
			t.Errorf("there is no field %s", name)
		}
	}
}
