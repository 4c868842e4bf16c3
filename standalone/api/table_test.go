package api

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodStatusColumn(t *testing.T) {
	waiting := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
	}
	ended := func(reason string, code int32) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: reason, ExitCode: code}}
	}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	always := corev1.ContainerRestartPolicyAlways
	yes := true
	sidecar := corev1.Container{Name: "s", RestartPolicy: &always}
	now := metav1.Now()
	for _, test := range []struct {
		want string
		pod  corev1.Pod
	}{
		{"0/1 Pending 0", corev1.Pod{Status: corev1.PodStatus{Phase: "Pending"}}},
		{"0/1 ContainerCreating 0", corev1.Pod{Status: corev1.PodStatus{Phase: "Pending", ContainerStatuses: []corev1.ContainerStatus{state(waiting("ContainerCreating"), false, 0)}}}},
		{"1/1 Running 0", corev1.Pod{Status: corev1.PodStatus{Phase: "Running", ContainerStatuses: []corev1.ContainerStatus{state(running, true, 0)}}}},
		{"0/1 CrashLoopBackOff 4", corev1.Pod{Status: corev1.PodStatus{Phase: "Running", ContainerStatuses: []corev1.ContainerStatus{state(waiting("CrashLoopBackOff"), false, 4)}}}},
		{"0/1 ImagePullBackOff 0", corev1.Pod{Status: corev1.PodStatus{Phase: "Pending", ContainerStatuses: []corev1.ContainerStatus{state(waiting("ImagePullBackOff"), false, 0)}}}},
		{"0/1 Completed 0", corev1.Pod{Status: corev1.PodStatus{Phase: "Succeeded", ContainerStatuses: []corev1.ContainerStatus{state(ended("Completed", 0), false, 0)}}}},
		{"0/1 Error 0", corev1.Pod{Status: corev1.PodStatus{Phase: "Failed", ContainerStatuses: []corev1.ContainerStatus{state(ended("Error", 1), false, 0)}}}},
		{"0/1 OOMKilled 1", corev1.Pod{Status: corev1.PodStatus{Phase: "Running", ContainerStatuses: []corev1.ContainerStatus{state(ended("OOMKilled", 137), false, 1)}}}},
		{"0/1 ExitCode:3 0", corev1.Pod{Status: corev1.PodStatus{Phase: "Failed", ContainerStatuses: []corev1.ContainerStatus{state(ended("", 3), false, 0)}}}},
		{"0/1 Evicted 0", corev1.Pod{Status: corev1.PodStatus{Phase: "Failed", Reason: "Evicted"}}},
		{"0/1 Init:0/2 0", corev1.Pod{Spec: corev1.PodSpec{InitContainers: make([]corev1.Container, 2)},
			Status: corev1.PodStatus{Phase: "Pending", InitContainerStatuses: []corev1.ContainerStatus{state(running, false, 0), state(waiting("PodInitializing"), false, 0)}}}},
		{"0/1 Init:1/2 0", corev1.Pod{Spec: corev1.PodSpec{InitContainers: make([]corev1.Container, 2)},
			Status: corev1.PodStatus{Phase: "Pending", InitContainerStatuses: []corev1.ContainerStatus{state(ended("Completed", 0), true, 0), state(waiting("PodInitializing"), false, 0)}}}},
		{"0/1 Init:CrashLoopBackOff 3", corev1.Pod{Spec: corev1.PodSpec{InitContainers: make([]corev1.Container, 1)},
			Status: corev1.PodStatus{Phase: "Pending", InitContainerStatuses: []corev1.ContainerStatus{state(waiting("CrashLoopBackOff"), false, 3)}}}},
		{"0/1 Init:Error 0", corev1.Pod{Spec: corev1.PodSpec{InitContainers: make([]corev1.Container, 1)},
			Status: corev1.PodStatus{Phase: "Pending", InitContainerStatuses: []corev1.ContainerStatus{state(ended("Error", 1), false, 0)}}}},
		{"1/1 Terminating 0", corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now},
			Status: corev1.PodStatus{Phase: "Running", ContainerStatuses: []corev1.ContainerStatus{state(running, true, 0)}}}},
		{"2/2 Running 1", corev1.Pod{Spec: corev1.PodSpec{InitContainers: []corev1.Container{sidecar}},
			Status: corev1.PodStatus{Phase: "Running", InitContainerStatuses: []corev1.ContainerStatus{{Name: "s", Started: &yes, Ready: true, RestartCount: 1, State: running}},
				ContainerStatuses: []corev1.ContainerStatus{state(running, true, 0)}}}},
		{"0/1 SchedulingGated 0", corev1.Pod{Status: corev1.PodStatus{Phase: "Pending", Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Reason: "SchedulingGated"}}}}},
	} {
		test.pod.Spec.Containers = []corev1.Container{{Name: "c"}}
		sum := summarize(&test.pod)
		if got := fmt.Sprintf("%d/%d %s %d", sum.ready, sum.all, sum.status, sum.restarts); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestTablesOfAllKindsHaveACellForEachColumn(t *testing.T) {
	s := &Server{Config: Config{Now: time.Now}}
	for r, cols := range tables {
		if cells := cols.row(s, r.New()); len(cells) != len(cols.names)+len(cols.wide) {
			t.Errorf("%s: %d cells for %d columns", r.Name, len(cells), len(cols.names)+len(cols.wide))
		}
	}
}

func TestRestartsSayWhen(t *testing.T) {
	now := time.Now()
	s := &Server{Config: Config{Now: func() time.Time { return now }}}
	if got := s.sinceRestart(2, now.Add(-5*time.Minute)); got != "2 (5m ago)" {
		t.Error(got)
	}
}
