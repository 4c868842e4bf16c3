package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A pod with hostUsers: false: its root is nobody on the node, and it sees its image and volumes as if it were root.
func TestPodUserNamespace(t *testing.T) {
	n := newNode(t)
	st, err := n.cri.Status(n.ctx(), &cri.StatusRequest{})
	if err != nil || len(st.RuntimeHandlers) == 0 || !st.RuntimeHandlers[0].Features.UserNamespaces {
		t.Fatalf("the runtime does not offer user namespaces: %v %v", st, err)
	}
	const host = 500000
	ids := []*cri.IDMapping{{HostId: host, Length: 65536}}
	users := &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
	box := n.podConfig()
	box.Linux.SecurityContext = &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: users}}
	pod := n.runPod(box)
	volume := filepath.Join(n.dir, "volume")
	if err := os.Mkdir(volume, 0o700); err != nil {
		t.Fatal(err)
	}
	make := func(name, script string, pid cri.NamespaceMode) string {
		c := config(name, script)
		if c.Linux == nil {
			c.Linux = &cri.LinuxContainerConfig{}
		}
		if c.Linux.SecurityContext == nil {
			c.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{}
		}
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: pid, UsernsOptions: users}
		c.Mounts = []*cri.Mount{{ContainerPath: "/volume", HostPath: volume, UidMappings: ids, GidMappings: ids}}
		return n.run(pod, box, c)
	}
	first := make("first", "echo mine > /volume/first; touch /dev/shm/first; sleep 1000", cri.NamespaceMode_CONTAINER)
	n.until("the volume is written", func() bool { _, err := os.Stat(volume + "/first"); return err == nil })
	var info unix.Stat_t
	if err := unix.Stat(volume+"/first", &info); err != nil || info.Uid != 0 {
		t.Errorf("the file in the volume belongs to %d on the node (%v)", info.Uid, err)
	}
	got := n.sh(first, "id -u; stat -c %u /bin /etc/hosts /volume /dev/shm; read a b c < /proc/self/uid_map; echo $a $b $c; touch /bin/new && echo written; ls -l /dev/null | cut -c1")
	if want := fmt.Sprintf("0\n0\n0\n0\n0\n0 %d 65536\nwritten\nc\n", host); got != want {
		t.Errorf("inside: %q, want %q", got, want)
	}
	second := make("second", "sleep 1000", cri.NamespaceMode_POD)
	if got := n.sh(second, "test -e /dev/shm/first && cat /volume/first; cat /proc/1/comm"); !strings.HasPrefix(got, "mine\n") {
		t.Errorf("the second container sees %q", got)
	}
	n.killRuntime()
	n.start()
	if got := n.sh(first, "id -u"); got != "0\n" {
		t.Errorf("after a restart of the runtime: %q", got)
	}
}

func TestUserNamespaceRefusals(t *testing.T) {
	n := newNode(t)
	ids := []*cri.IDMapping{{HostId: 500000, Length: 65536}}
	for _, u := range []*cri.UserNamespace{
		{Mode: cri.NamespaceMode_CONTAINER, Uids: ids, Gids: ids}, {Mode: cri.NamespaceMode_TARGET, Uids: ids, Gids: ids},
		{Mode: cri.NamespaceMode_POD}, {Mode: cri.NamespaceMode_POD, Uids: append(ids, ids...), Gids: ids},
	} {
		box := n.podConfig()
		box.Linux.SecurityContext = &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{UsernsOptions: u}}
		if r, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: box}); err == nil {
			t.Errorf("%v: sandbox %s was made", u, r.PodSandboxId)
		}
	}
}
