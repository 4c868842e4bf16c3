package plan

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	"worknode/runtime/state"
)

func TestApply(t *testing.T) {
	mount := func(at, from string) specs.Mount { return specs.Mount{Destination: at, Source: from, Type: "bind"} }
	old := func() *specs.Spec {
		return &specs.Spec{
			Annotations: map[string]string{"a": "1", "b": "2"},
			Mounts:      []specs.Mount{mount("/proc", "proc"), mount("/x/y", "old"), mount("/z", "z")},
			Process: &specs.Process{Args: []string{"run"}, Env: []string{"A=1", "B=2", "EMPTY="}, User: specs.User{AdditionalGids: []uint32{5}},
				Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}, OOMScoreAdj: new(7)},
			Linux: &specs.Linux{
				Devices: []specs.LinuxDevice{{Path: "/dev/null"}, {Path: "/dev/x", Major: 1}}, Sysctl: map[string]string{"k.a": "1"},
				Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace, Path: "/p/ipc"}},
				Resources: &specs.LinuxResources{
					CPU: &specs.LinuxCPU{Shares: new(uint64(10)), Cpus: "0"}, Memory: &specs.LinuxMemory{Limit: new(int64(100))},
					HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}, Unified: map[string]string{"u": "1"},
					Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
				},
			},
		}
	}
	process := func(p specs.Process) state.Edit { return state.Edit{Add: specs.Spec{Process: &p}} }
	linux := func(l specs.Linux) state.Edit { return state.Edit{Add: specs.Spec{Linux: &l}} }
	limits := func(r specs.LinuxResources) state.Edit { return linux(specs.Linux{Resources: &r}) }
	for name, row := range map[string]struct {
		edit state.Edit
		want func(*specs.Spec)
	}{
		"nothing":    {state.Edit{}, func(*specs.Spec) {}},
		"variables":  {process(specs.Process{Env: []string{"B=new", "C=3"}}), func(s *specs.Spec) { s.Process.Env = []string{"A=1", "B=new", "EMPTY=", "C=3"} }},
		"arguments":  {process(specs.Process{Args: []string{"other"}}), func(s *specs.Spec) { s.Process.Args = []string{"other"} }},
		"groups":     {process(specs.Process{User: specs.User{UID: 9, AdditionalGids: []uint32{5, 6}}}), func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{5, 6} }},
		"score":      {process(specs.Process{OOMScoreAdj: new(0)}), func(s *specs.Spec) { s.Process.OOMScoreAdj = new(0) }},
		"rlimit":     {process(specs.Process{Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 9}}}), func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 9}} }},
		"annotation": {state.Edit{Add: specs.Spec{Annotations: map[string]string{"b": "3", "c": "4"}}}, func(s *specs.Spec) { s.Annotations = map[string]string{"a": "1", "b": "3", "c": "4"} }},
		"mounts are in order of depth": {state.Edit{Add: specs.Spec{Mounts: []specs.Mount{mount("/x", "new"), mount("/x/y/", "newer")}}},
			func(s *specs.Spec) {
				s.Mounts = []specs.Mount{mount("/proc", "proc"), mount("/z", "z"), mount("/x", "new"), mount("/x/y/", "newer")}
			}},
		"device":    {linux(specs.Linux{Devices: []specs.LinuxDevice{{Path: "/dev/x", Major: 2}}}), func(s *specs.Spec) { s.Linux.Devices[1].Major = 2 }},
		"namespace": {linux(specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.IPCNamespace, Path: "/q"}}}), func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/q" }},
		"sysctl":    {linux(specs.Linux{Sysctl: map[string]string{"k.b": "2"}}), func(s *specs.Spec) { s.Linux.Sysctl["k.b"] = "2" }},
		"cgroup":    {linux(specs.Linux{CgroupsPath: "/g"}), func(s *specs.Spec) { s.Linux.CgroupsPath = "/g" }},
		"CPU":       {limits(specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: new(int64(5)), Cpus: "1"}}), func(s *specs.Spec) { s.Linux.Resources.CPU.Quota, s.Linux.Resources.CPU.Cpus = new(int64(5)), "1" }},
		"memory":    {limits(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(200))}}), func(s *specs.Spec) { s.Linux.Resources.Memory.Limit = new(int64(200)) }},
		"huge pages": {limits(specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 2}, {Pagesize: "1GB"}}}), func(s *specs.Spec) {
			s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 2}, {Pagesize: "1GB"}}
		}},
		"unified": {limits(specs.LinuxResources{Unified: map[string]string{"v": "2"}}), func(s *specs.Spec) { s.Linux.Resources.Unified["v"] = "2" }},
		"device rule": {limits(specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true}}}), func(s *specs.Spec) {
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true})
		}},
		"hooks": {state.Edit{Add: specs.Spec{Hooks: &specs.Hooks{Poststop: []specs.Hook{{Path: "/h"}}}}}, func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/h"}}} }},
		"removals": {state.Edit{Remove: state.Removals{Annotations: []string{"a", "none"}, Env: []string{"A", "EMPTY"}, Mounts: []string{"/z"}, Devices: []string{"/dev/x"}, Sysctls: []string{"k.a"}, Namespaces: []specs.LinuxNamespaceType{specs.IPCNamespace}}},
			func(s *specs.Spec) {
				s.Annotations, s.Process.Env, s.Linux.Sysctl = map[string]string{"b": "2"}, []string{"B=2"}, map[string]string{}
				s.Mounts, s.Linux.Devices, s.Linux.Namespaces = s.Mounts[:2], s.Linux.Devices[:1], s.Linux.Namespaces[:1]
			}},
		"replaced": {state.Edit{Remove: state.Removals{Env: []string{"A"}}, Add: specs.Spec{Process: &specs.Process{Env: []string{"A=again"}}}}, func(s *specs.Spec) { s.Process.Env = []string{"B=2", "EMPTY=", "A=again"} }},
	} {
		t.Run(name, func(t *testing.T) {
			got, want := old(), old()
			if err := Apply(got, row.edit); err != nil {
				t.Fatal(err)
			}
			row.want(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	// Hooks of two edits follow each other and leave the edits as they were.
	shared := specs.Hooks{Prestart: []specs.Hook{{Path: "/a"}}} // deprecated, still honoured
	spec := old()
	for range 2 {
		if err := Apply(spec, state.Edit{Add: specs.Spec{Hooks: &shared}}); err != nil {
			t.Fatal(err)
		}
	}
	if len(spec.Hooks.Prestart) != 2 || len(shared.Prestart) != 1 { // deprecated, still honoured
		t.Errorf("%v, shared %v", spec.Hooks, shared)
	}
	for _, bad := range []specs.Hook{{Path: "relative"}, {}, {Path: "/a", Timeout: new(0)}} {
		if err := Apply(old(), state.Edit{Add: specs.Spec{Hooks: &specs.Hooks{Poststart: []specs.Hook{bad}}}}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// What this build cannot do is refused when the container is created.
func TestEditsThatAreNotPossible(t *testing.T) {
	for name, l := range map[string]specs.Linux{
		"rdt": {IntelRdt: &specs.LinuxIntelRdt{ClosID: "x"}}, "net device": {NetDevices: map[string]specs.LinuxNetDevice{"eth7": {}}},
		"listener": {Seccomp: &specs.LinuxSeccomp{ListenerPath: "/run/x"}},
	} {
		in := base()
		in.Edits = []state.Edit{{Add: specs.Spec{Linux: &l}}}
		if _, err := Container(in); !fault.Is(err, fault.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
