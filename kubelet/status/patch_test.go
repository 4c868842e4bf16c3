package status

import (
	"encoding/json"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// A patch turns whatever we wrote before into the new status, and leaves alone what others wrote.
func TestPatchReplacesOursAndKeepsTheirs(t *testing.T) {
	at := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	cond := func(kind v1.PodConditionType, s v1.ConditionStatus, reason, message string) v1.PodCondition {
		return v1.PodCondition{Type: kind, Status: s, Reason: reason, Message: message, LastTransitionTime: at}
	}
	before := v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u", Labels: map[string]string{"a": "b"}}, Status: v1.PodStatus{
		Phase: v1.PodPending, Reason: "Old", Message: "old", PodIP: "10.0.0.1", PodIPs: []v1.PodIP{{IP: "10.0.0.1"}},
		Conditions: []v1.PodCondition{
			cond(v1.PodReady, v1.ConditionFalse, "ContainersNotReady", "containers with unready status: [a]"), cond("example.com/theirs", v1.ConditionTrue, "X", "y"),
		},
		ContainerStatuses: []v1.ContainerStatus{{Name: "a", State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "ContainerCreating"}}}},
	}}
	next := v1.PodStatus{
		Phase: v1.PodRunning, PodIP: "10.0.0.2", PodIPs: []v1.PodIP{{IP: "10.0.0.2"}},
		Conditions:        []v1.PodCondition{cond(v1.PodReady, v1.ConditionTrue, "", ""), cond("example.com/theirs", v1.ConditionFalse, "stale", "copy")},
		ContainerStatuses: []v1.ContainerStatus{{Name: "a", Ready: true, State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: at}}}},
	}
	body, err := encode("u", &next, true)
	if err != nil {
		t.Fatal(err)
	}
	old, err := json.Marshal(before)
	if err != nil {
		t.Fatal(err)
	}
	merged, err := strategicpatch.StrategicMergePatch(old, body, &v1.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	var got v1.Pod
	if err := json.Unmarshal(merged, &got); err != nil {
		t.Fatal(err)
	}
	theirs := got.Status.Conditions[1]
	if theirs.Status != v1.ConditionTrue || theirs.Reason != "X" {
		t.Errorf("a condition of somebody else was changed: %+v", theirs)
	}
	got.Status.Conditions[1] = next.Conditions[1]
	if !Same(&got.Status, &next) {
		t.Errorf("after the patch the server has %+v", got.Status)
	}
	if got.Labels["a"] != "b" {
		t.Error("the patch reached beyond the status")
	}
}

// Same sees every change that the kubelet can make; times of conditions follow their status.
func TestSameSeesChanges(t *testing.T) {
	yes := true
	base := func() *v1.PodStatus {
		return &v1.PodStatus{
			Phase: v1.PodRunning, PodIPs: []v1.PodIP{{IP: "1"}}, Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}},
			ContainerStatuses: []v1.ContainerStatus{{Name: "a", Started: &yes, State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}},
		}
	}
	if !Same(base(), base()) {
		t.Fatal("equal statuses differ")
	}
	no := false
	for name, change := range map[string]func(*v1.PodStatus){
		"phase":      func(s *v1.PodStatus) { s.Phase = v1.PodFailed },
		"reason":     func(s *v1.PodStatus) { s.Reason = "x" },
		"message":    func(s *v1.PodStatus) { s.Message = "x" },
		"address":    func(s *v1.PodStatus) { s.PodIPs[0].IP = "2" },
		"generation": func(s *v1.PodStatus) { s.ObservedGeneration = 2 },
		"condition":  func(s *v1.PodStatus) { s.Conditions[0].Message = "x" },
		"ready":      func(s *v1.PodStatus) { s.ContainerStatuses[0].Ready = true },
		"started":    func(s *v1.PodStatus) { s.ContainerStatuses[0].Started = &no },
		"restarts":   func(s *v1.PodStatus) { s.ContainerStatuses[0].RestartCount = 1 },
		"id":         func(s *v1.PodStatus) { s.ContainerStatuses[0].ContainerID = "x" },
		"state": func(s *v1.PodStatus) {
			s.ContainerStatuses[0].State = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "x"}}
		},
		"start time": func(s *v1.PodStatus) {
			s.ContainerStatuses[0].State.Running = &v1.ContainerStateRunning{StartedAt: metav1.Now()}
		},
		"last": func(s *v1.PodStatus) {
			s.ContainerStatuses[0].LastTerminationState.Terminated = &v1.ContainerStateTerminated{ExitCode: 1}
		},
		"init": func(s *v1.PodStatus) { s.InitContainerStatuses = []v1.ContainerStatus{{Name: "i"}} },
	} {
		s := base()
		change(s)
		if Same(base(), s) {
			t.Errorf("a change of the %s is not seen", name)
		}
	}
}
