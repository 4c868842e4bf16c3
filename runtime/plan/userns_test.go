package plan

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/state"
)

func mapped(container, host, length uint32) *cri.UserNamespace {
	ids := []*cri.IDMapping{{ContainerId: container, HostId: host, Length: length}}
	return &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
}

func TestUserNamespaceRules(t *testing.T) {
	two := mapped(0, 1000, 10)
	two.Uids = append(two.Uids, two.Uids[0])
	uneven := mapped(0, 1000, 10)
	uneven.Gids = mapped(0, 1000, 11).Gids
	node := mapped(0, 1000, 10)
	node.Mode = cri.NamespaceMode_NODE
	for name, row := range map[string]struct {
		opts *cri.NamespaceOption
		want *IDMap
		kind fault.Kind
		text string
	}{
		"none":         {&cri.NamespaceOption{}, nil, 0, ""},
		"node":         {&cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}}, nil, 0, ""},
		"node mapped":  {&cri.NamespaceOption{UsernsOptions: node}, nil, fault.Invalid, "NODE"},
		"mapped":       {&cri.NamespaceOption{UsernsOptions: mapped(0, 131072, 65536)}, &IDMap{131072, 131072, 65536}, 0, ""},
		"two":          {&cri.NamespaceOption{UsernsOptions: two}, nil, fault.Invalid, "2 mappings of uids"},
		"not from 0":   {&cri.NamespaceOption{UsernsOptions: mapped(1, 1000, 10)}, nil, fault.Invalid, "from 1"},
		"empty":        {&cri.NamespaceOption{UsernsOptions: mapped(0, 1000, 0)}, nil, fault.Invalid, "no range"},
		"too far":      {&cri.NamespaceOption{UsernsOptions: mapped(0, 1<<32-10, 10)}, nil, fault.Invalid, "no range"},
		"uneven":       {&cri.NamespaceOption{UsernsOptions: uneven}, nil, fault.Invalid, "10 uids but 11 gids"},
		"container":    {&cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_CONTAINER}}, nil, fault.Invalid, "CONTAINER"},
		"host network": {&cri.NamespaceOption{UsernsOptions: mapped(0, 1000, 10), Network: cri.NamespaceMode_NODE}, nil, fault.Unsupported, "host's network"},
		"host ipc":     {&cri.NamespaceOption{UsernsOptions: mapped(0, 1000, 10), Ipc: cri.NamespaceMode_NODE}, nil, fault.Unsupported, "host's network"},
	} {
		got, err := UserNamespace(row.opts)
		if (got == nil) != (row.want == nil) || got != nil && *got != *row.want || (err != nil) != (row.text != "") {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if err != nil && (fault.Of(err) != row.kind || !strings.Contains(err.Error(), row.text)) {
			t.Errorf("%s: %v (%s)", name, err, fault.Of(err))
		}
	}
}

func TestUserNamespaceInSpec(t *testing.T) {
	in := base()
	users := mapped(0, 131072, 65536)
	in.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
	box := *in.Sandbox
	box.Config = &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: &cri.NamespaceOption{UsernsOptions: users},
	}}}
	in.Sandbox = &box
	in.Pins = map[specs.LinuxNamespaceType]string{specs.UserNamespace: "/pins/user"}
	in.Volumes = []state.Volume{{Destination: "/image", Lower: []string{"/l"}}}
	in.Config.Mounts = []*cri.Mount{
		{ContainerPath: "/mapped", HostPath: "/a", UidMappings: users.Uids, GidMappings: users.Gids}, {ContainerPath: "/plain", HostPath: "/a"},
	}
	made, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range made.Spec.Mounts {
		want := m.Destination == "/mapped" || m.Destination == "/image"
		if got := len(m.UIDMappings) == 1 && m.UIDMappings[0].HostID == 131072; got != want {
			t.Errorf("mount %s: mappings %v", m.Destination, m.UIDMappings)
		}
	}
	found := false
	for _, ns := range made.Spec.Linux.Namespaces {
		found = found || ns.Type == specs.UserNamespace && ns.Path == "/pins/user"
	}
	if !found || len(made.Spec.Linux.UIDMappings) != 1 {
		t.Errorf("namespaces %v, mappings %v", made.Spec.Linux.Namespaces, made.Spec.Linux.UIDMappings)
	}
	other := mapped(0, 1, 65536)
	in.Config.Mounts[0].UidMappings = other.Uids
	if _, err := Container(in); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a mount with another mapping: %v", err)
	}
}
