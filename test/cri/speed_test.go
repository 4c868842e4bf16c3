package cri

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSpeed prints what each verb takes; the bounds are loose, as a busy machine must not fail it.
func TestSpeed(t *testing.T) {
	n := newNode(t)
	took := map[string][]time.Duration{}
	verbs := []string{"RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"}
	step := func(verb string, fn func() error) {
		start := time.Now()
		if err := fn(); err != nil {
			t.Fatalf("%s: %v", verb, err)
		}
		took[verb] = append(took[verb], time.Since(start))
	}
	for range 30 {
		box := n.podConfig()
		var pod, id string
		step("RunPodSandbox", func() error {
			r, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: box})
			pod = r.GetPodSandboxId()
			return err
		})
		c := config("main", "")
		c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 102, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900}
		step("CreateContainer", func() error {
			r, err := n.cri.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c})
			id = r.GetContainerId()
			return err
		})
		step("StartContainer", func() error {
			_, err := n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
			return err
		})
		step("StopContainer", func() error {
			_, err := n.cri.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id})
			return err
		})
		step("RemoveContainer", func() error {
			_, err := n.cri.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id})
			return err
		})
		step("StopPodSandbox", func() error {
			_, err := n.cri.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: pod})
			return err
		})
		step("RemovePodSandbox", func() error {
			_, err := n.cri.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		})
	}
	for _, v := range verbs {
		slices.Sort(took[v])
		t.Logf("%-18s p50 %8s  p90 %8s", v, took[v][15].Round(10*time.Microsecond), took[v][27].Round(10*time.Microsecond))
		if took[v][15] > time.Second {
			t.Errorf("%s takes %s", v, took[v][15])
		}
	}
}

// TestThirtyAtOnce: no global lock, and none of them fails.
func TestThirtyAtOnce(t *testing.T) {
	n := newNode(t)
	boxes := make([]*cri.PodSandboxConfig, 30)
	for i := range boxes {
		boxes[i] = n.podConfig()
	}
	start := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, len(boxes))
	for i, box := range boxes {
		wg.Go(func() {
			r, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: box})
			if err == nil {
				var c *cri.CreateContainerResponse
				c, err = n.cri.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: r.PodSandboxId, Config: config("main", "")})
				if err == nil {
					_, err = n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: c.ContainerId})
				}
			}
			errs[i] = err
		})
	}
	wg.Wait()
	t.Logf("30 pods: %s", time.Since(start).Round(time.Millisecond))
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	list, err := n.cri.ListContainers(n.ctx(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}})
	if err != nil || len(list.Containers) != 30 {
		t.Errorf("%d containers run, %v", len(list.GetContainers()), err)
	}
	ips := map[string]bool{}
	pods, err := n.cri.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		s, err := n.cri.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if err != nil || ips[s.Status.Network.Ip] {
			t.Errorf("address %v twice, %v", s, err)
		}
		ips[fmt.Sprint(s.Status.Network.Ip)] = true
	}
}
