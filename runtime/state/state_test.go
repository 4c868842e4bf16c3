package state

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
)

func open(t *testing.T, dir string) (*Store, []error) {
	t.Helper()
	s, bad, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, bad
}

func sample() (*Sandbox, *Container) {
	s := &Sandbox{ID: strings.Repeat("a", 64), State: Ready, Created: time.Unix(1, 2).UTC(), Config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "p", Uid: "u", Attempt: 3}, Labels: map[string]string{"k": "v"}}, IPs: []string{"10.0.0.1"}}
	c := &Container{ID: strings.Repeat("b", 64), Sandbox: s.ID, State: Running, Pid: 7, StartTime: 8, Created: time.Unix(3, 0).UTC(),
		Config: &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "c"}, Envs: []*cri.KeyValue{{Key: "RAW", Value: []byte{0xff, 0}}},
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{RunAsUser: &cri.Int64Value{Value: 0}}}}}
	return s, c
}

func TestRecordsSurvive(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	box, c := sample()
	if err := s.PutSandbox(box); err != nil {
		t.Fatal(err)
	}
	if err := s.PutContainer(c); err != nil {
		t.Fatal(err)
	}
	again, bad := open(t, dir)
	if len(bad) > 0 {
		t.Error(bad)
	}
	gotBox, err := again.Sandbox(box.ID[:5])
	if err != nil {
		t.Fatal(err)
	}
	gotC, err := again.Container(c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(box, gotBox, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(c, gotC, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if gotC.Config.Linux.SecurityContext.RunAsUser == nil {
		t.Error("run_as_user 0 became unset")
	}
	if err := again.DropContainer(c.ID); err != nil {
		t.Error(err)
	}
	if err := again.DropContainer(c.ID); err != nil {
		t.Errorf("a second drop: %v", err)
	}
	if _, err := again.Container(c.ID); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

// TestCorruptRecord: a record cut at any byte costs that object only.
func TestCorruptRecord(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	box, c := sample()
	other := *box
	other.ID = strings.Repeat("c", 64)
	for _, b := range []*Sandbox{box, &other} {
		if err := s.PutSandbox(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutContainer(c); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "containers", c.ID+".json")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 0; cut < len(whole); cut += 7 {
		os.Remove(path + ".bad")
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		again, bad := open(t, dir)
		if len(bad) != 1 || len(again.Sandboxes()) != 2 {
			t.Fatalf("cut at %d: %v, %d sandboxes", cut, bad, len(again.Sandboxes()))
		}
	}
	for name, text := range map[string]string{"foreign id": strings.Replace(string(whole), c.ID, strings.Repeat("d", 64), 1), "no config": `{"ID":"` + c.ID + `"}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, bad := open(t, dir); len(bad) != 1 {
			t.Errorf("%s: %v", name, bad)
		}
	}
}

func TestHalfWrittenIsIgnored(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	box, _ := sample()
	if err := s.PutSandbox(box); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sandboxes", ".new-"+box.ID), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, bad := open(t, dir)
	if len(bad) != 0 || len(again.Sandboxes()) != 1 {
		t.Errorf("%v", bad)
	}
}

func TestBootVoidsRecords(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	box, _ := sample()
	if err := s.PutSandbox(box); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "boot"), []byte("another boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, bad := open(t, dir); len(again.Sandboxes()) != 0 || len(bad) != 0 {
		t.Errorf("records of an earlier boot are still there")
	}
}

func TestFind(t *testing.T) {
	s, _ := open(t, t.TempDir())
	for _, id := range []string{"abc1", "abc2", "xyz"} {
		if err := s.PutSandbox(&Sandbox{ID: id, Config: &cri.PodSandboxConfig{}}); err != nil {
			t.Fatal(err)
		}
	}
	for id, kind := range map[string]fault.Kind{"abc": fault.Invalid, "": fault.Invalid, "q": fault.NotFound} {
		if _, err := s.Sandbox(id); !fault.Is(err, kind) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if v, err := s.Sandbox("x"); err != nil || v.ID != "xyz" {
		t.Errorf("%v %v", v, err)
	}
}

// TestSteps proves that every pair is in the table or refused.
func TestSteps(t *testing.T) {
	for _, s := range []State{Created, Running, Exited, Gone} {
		for _, e := range []Event{Started, Failed, Died, Removed} {
			c := &Container{ID: "x", State: s}
			next, err := c.Step(e)
			want, ok := Steps[s][e]
			if ok && (err != nil || next != want) || !ok && (!fault.Is(err, fault.Invalid) || next != s) {
				t.Errorf("%s + %s: %s %v", s, e, next, err)
			}
		}
	}
	if _, err := (&Container{State: Exited}).Step(Started); err == nil {
		t.Error("an exited container can be started again")
	}
}
