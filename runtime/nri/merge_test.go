package nri

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"worknode/fault"
)

func held() *Container {
	return &Container{ID: "c", Args: []string{"run"}, Env: []string{"A=1", "B=2"}, Annotations: map[string]string{"k": "old"},
		Mounts: []*Mount{{Destination: "/a"}}, Linux: &LinuxContainer{Devices: []*Device{{Path: "/dev/x", Major: 1}}, Resources: &Resources{CPU: &CPU{Shares: &Opt[uint64]{1}}}}}
}

// What two plugins want of one container, one after the other; conflict is what the error says, empty for none.
func TestAdjustmentsAreMerged(t *testing.T) {
	env := func(kv ...string) *Adjustment {
		a := &Adjustment{}
		for i := 0; i < len(kv); i += 2 {
			a.Env = append(a.Env, &KeyValue{kv[i], kv[i+1]})
		}
		return a
	}
	linux := func(l LinuxAdjustment) *Adjustment { return &Adjustment{Linux: &l} }
	limits := func(r Resources) *Adjustment { return linux(LinuxAdjustment{Resources: &r}) }
	for name, row := range map[string]struct {
		first, second *Adjustment
		conflict      string
		check         func(t *testing.T, m *merged)
	}{
		"nothing": {nil, &Adjustment{}, "", func(t *testing.T, m *merged) {
			if diff := cmp.Diff(held(), m.create); diff != "" {
				t.Error(diff)
			}
		}},
		"a variable each": {env("X", "1"), env("Y", "2", "A", "9"), "", func(t *testing.T, m *merged) {
			if diff := cmp.Diff([]string{"B=2", "X=1", "Y=2", "A=9"}, m.create.Env); diff != "" {
				t.Error(diff)
			}
		}},
		"the same variable":               {env("X", "1"), env("X", "1"), "10-a and 20-b both set variable X", nil},
		"a variable taken away and set":   {env("X", "1"), env("-X", "", "X", "2"), "", func(t *testing.T, m *merged) { wantEnv(t, m, "X=2") }},
		"a variable taken away":           {env("X", "1"), env("-X", "", "-B", ""), "", func(t *testing.T, m *merged) { wantEnv(t, m, "-X=", "-B=") }},
		"what is not the other's is free": {env("-A", ""), env("A", "5"), "", func(t *testing.T, m *merged) { wantEnv(t, m, "-A=", "A=5") }},
		"the same annotation":             {&Adjustment{Annotations: map[string]string{"k": "1"}}, &Adjustment{Annotations: map[string]string{"k": "2"}}, "both set annotation k", nil},
		"the same mount":                  {&Adjustment{Mounts: []*Mount{{Destination: "/m"}}}, &Adjustment{Mounts: []*Mount{{Destination: "/m"}}}, "both set mount /m", nil},
		"the same CDI device":             {&Adjustment{CDI: []*CDIDevice{{"v/c=d"}}}, &Adjustment{CDI: []*CDIDevice{{"v/c=d"}}}, "both set CDI device v/c=d", nil},
		"the same rlimit":                 {&Adjustment{Rlimits: []*Rlimit{{Type: "RLIMIT_CORE"}}}, &Adjustment{Rlimits: []*Rlimit{{Type: "RLIMIT_CORE"}}}, "both set rlimit RLIMIT_CORE", nil},
		"the same limit":                  {limits(Resources{CPU: &CPU{Quota: &Opt[int64]{1}}}), limits(Resources{CPU: &CPU{Quota: &Opt[int64]{1}}}), "both set CPU quota of container c", nil},
		"the same cgroup file":            {limits(Resources{Unified: map[string]string{"u": "1"}}), limits(Resources{Unified: map[string]string{"u": "1"}}), "both set cgroup file u", nil},
		"the same score":                  {linux(LinuxAdjustment{OOMScoreAdj: &Opt[int64]{1}}), linux(LinuxAdjustment{OOMScoreAdj: &Opt[int64]{2}}), "both set OOM score", nil},
		"the same sysctl":                 {linux(LinuxAdjustment{Sysctl: map[string]string{"s": "1"}}), linux(LinuxAdjustment{Sysctl: map[string]string{"s": "1"}}), "both set sysctl s", nil},
		"the same namespace":              {linux(LinuxAdjustment{Namespaces: []*Namespace{{Type: "ipc"}}}), linux(LinuxAdjustment{Namespaces: []*Namespace{{Type: "ipc"}}}), "both set namespace ipc", nil},
		"arguments":                       {&Adjustment{Args: []string{"x"}}, &Adjustment{Args: []string{"y"}}, "both set arguments", nil},
		"arguments taken away":            {&Adjustment{Args: []string{"x"}}, &Adjustment{Args: []string{"", "y"}}, "", func(t *testing.T, m *merged) { wantArgs(t, m, "y") }},
		"a class of service taken away": {linux(LinuxAdjustment{Rdt: &Rdt{ClosID: &Opt[string]{"a"}}}), linux(LinuxAdjustment{Rdt: &Rdt{Remove: true, ClosID: &Opt[string]{"b"}}}), "", func(t *testing.T, m *merged) {
			if r := m.adjust.Linux.Rdt; !r.Remove || r.ClosID.Value != "b" {
				t.Errorf("%+v", r)
			}
		}},
		"hooks of both": {&Adjustment{Hooks: &Hooks{Prestart: []*Hook{{Path: "/1"}}}}, &Adjustment{Hooks: &Hooks{Prestart: []*Hook{{Path: "/2"}}}}, "", func(t *testing.T, m *merged) {
			if h := m.adjust.Hooks.Prestart; len(h) != 2 || h[0].Path != "/1" || m.owners["c"].Simple[int32(fHooks)] != "10-a,20-b" {
				t.Errorf("%+v, owners %v", h, m.owners["c"])
			}
		}},
		"different limits": {limits(Resources{CPU: &CPU{Quota: &Opt[int64]{7}}}), limits(Resources{Memory: &Memory{Limit: &Opt[int64]{8}}, Hugepages: []*Hugepage{{"2MB", 1}}}), "", func(t *testing.T, m *merged) {
			want := &Resources{CPU: &CPU{Shares: &Opt[uint64]{1}, Quota: &Opt[int64]{7}}, Memory: &Memory{Limit: &Opt[int64]{8}}, Hugepages: []*Hugepage{{"2MB", 1}}}
			if diff := cmp.Diff(want, m.create.Linux.Resources); diff != "" {
				t.Error(diff)
			}
			want.CPU.Shares = nil // only what is wanted is handed on
			if diff := cmp.Diff(want, m.adjust.Linux.Resources); diff != "" {
				t.Error(diff)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := mergeCreate(held())
			if err := m.addAdjustment(row.first, "10-a"); err != nil {
				t.Fatal(err)
			}
			err := m.addAdjustment(row.second, "20-b")
			if row.conflict != "" {
				if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), row.conflict) {
					t.Errorf("%v, want %q", err, row.conflict)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			row.check(t, m)
		})
	}
}

func wantEnv(t *testing.T, m *merged, want ...string) {
	t.Helper()
	var got []string
	for _, e := range m.adjust.Env {
		got = append(got, e.Key+"="+e.Value)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func wantArgs(t *testing.T, m *merged, want ...string) {
	t.Helper()
	if !cmp.Equal(want, m.adjust.Args) || !cmp.Equal(want, m.create.Args) {
		t.Errorf("%q, shown %q", m.adjust.Args, m.create.Args)
	}
}

func TestUpdatesAreMerged(t *testing.T) {
	shares := func(id string, n uint64, ignore bool) *Update {
		return &Update{ID: id, Linux: &LinuxUpdate{Resources: &Resources{CPU: &CPU{Shares: &Opt[uint64]{n}}}}, IgnoreFailure: ignore}
	}
	asked := &Resources{CPU: &CPU{Shares: &Opt[uint64]{1}, Cpus: "0"}}
	m := mergeUpdate("c", asked)
	if err := m.addUpdates([]*Update{shares("c", 2, false), shares("other", 3, false)}, "10-a"); err != nil {
		t.Fatal(err)
	}
	if m.limits.CPU.Shares.Value != 2 || m.limits.CPU.Cpus != "0" || asked.CPU.Shares.Value != 1 || len(m.updates) != 1 || m.updates[0].ID != "other" {
		t.Errorf("%+v %+v, asked %+v", m.limits.CPU, m.updates, asked.CPU)
	}
	if err := m.addUpdates([]*Update{shares("other", 4, true)}, "20-b"); err != nil || m.updates[0].Linux.Resources.CPU.Shares.Value != 3 {
		t.Errorf("a conflict that may fail: %v, %+v", err, m.updates[0].Linux.Resources.CPU)
	}
	if err := m.addUpdates([]*Update{shares("other", 4, false)}, "20-b"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a conflict: %v", err)
	}
	if err := mergeCreate(held()).addUpdates([]*Update{shares("c", 1, true)}, "10-a"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "just being created") {
		t.Errorf("an update of what is being created: %v", err)
	}
}
