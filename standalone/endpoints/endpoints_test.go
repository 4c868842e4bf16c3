package endpoints

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"worknode/standalone/store"
)

func pod(name, ip string, change ...func(*v1.Pod)) *v1.Pod {
	p := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": "web"}},
		Spec:       v1.PodSpec{NodeName: "n", Containers: []v1.Container{{Ports: []v1.ContainerPort{{Name: "http", Protocol: v1.ProtocolTCP, ContainerPort: 8080}}}}},
		Status:     v1.PodStatus{PodIP: ip, Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}}},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

// look prints a Service's endpoints in one word each.
func look(s *store.Store) (all []string) {
	items, _ := s.List(store.EndpointSlices, "")
	for _, item := range items {
		slice := item.Object.(*discoveryv1.EndpointSlice)
		for _, e := range slice.Endpoints {
			for _, p := range slice.Ports {
				all = append(all, fmt.Sprintf("%s:%d ready=%v serving=%v terminating=%v", e.Addresses[0], *p.Port, *e.Conditions.Ready, *e.Conditions.Serving, *e.Conditions.Terminating))
			}
		}
	}
	slices.Sort(all) // two slices come in the order of their random names
	return all
}

func TestSlicesFollowPodsAndServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open("")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		go New(s).Run(ctx)
		put := func(r *store.Resource, obj store.Object) {
			t.Helper()
			if _, err := s.Put(r, obj, s.Get(r, "default", obj.GetName())); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		expect := func(want ...string) {
			t.Helper()
			if got := look(s); !slices.Equal(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		}
		put(store.Services, &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: v1.ServiceSpec{
			Selector: map[string]string{"app": "web"}, Ports: []v1.ServicePort{{Port: 80, Protocol: v1.ProtocolTCP, TargetPort: intstr.FromString("http")}},
		}})
		expect()
		put(store.Pods, pod("a", "10.0.0.1"))
		put(store.Pods, pod("b", "", func(p *v1.Pod) {}))
		put(store.Pods, pod("c", "10.0.0.3", func(p *v1.Pod) { p.Labels["app"] = "other" }))
		expect("10.0.0.1:8080 ready=true serving=true terminating=false")
		put(store.Pods, pod("b", "10.0.0.2", func(p *v1.Pod) { p.Status.Conditions = nil }))
		expect("10.0.0.1:8080 ready=true serving=true terminating=false", "10.0.0.2:8080 ready=false serving=false terminating=false")
		rv := s.RV()
		put(store.Pods, pod("b", "10.0.0.2", func(p *v1.Pod) { p.Status.Conditions = nil; p.Status.Message = "of no interest" }))
		if now := s.RV(); now != rv+1 {
			t.Errorf("a status that changes no endpoint wrote %d objects", now-rv-1)
		}
		put(store.Pods, pod("a", "10.0.0.1", func(p *v1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now }))
		put(store.Pods, pod("b", "10.0.0.2", func(p *v1.Pod) { p.Spec.Containers[0].Ports[0].ContainerPort = 9090 }))
		expect("10.0.0.1:8080 ready=false serving=true terminating=true", "10.0.0.2:9090 ready=true serving=true terminating=false")
		put(store.Pods, pod("b", "10.0.0.2", func(p *v1.Pod) { p.Status.Phase = v1.PodSucceeded }))
		if _, err := s.Delete(store.Pods, s.Get(store.Pods, "default", "a"), nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		expect()
		if _, err := s.Delete(store.Services, s.Get(store.Services, "default", "web"), nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if items, _ := s.List(store.EndpointSlices, ""); len(items) != 0 {
			t.Errorf("%d slices outlive their Service", len(items))
		}
		stop()
	})
}
