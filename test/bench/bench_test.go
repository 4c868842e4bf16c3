//go:build bench

// Package bench measures a node against the goals of the project and against the floor that the kernel sets, in one run.
package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/kube"
	"worknode/test/harness"
)

const image = "worknode.test/app:1"

var results []string

// result prints one figure beside its goal and keeps it for the table at the end.
func result(what, value, goal string) {
	results = append(results, fmt.Sprintf("| %s | %s | %s |", what, value, goal))
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "floor-child" {
		floorChild(os.Args[2])
	}
	code := m.Run()
	fmt.Println("\n| what | here | goal |\n|---|---|---|")
	for _, r := range results {
		fmt.Println(r)
	}
	os.Exit(code)
}

func pod(name string) *v1.Pod {
	grace := int64(10)
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec:       v1.PodSpec{TerminationGracePeriodSeconds: &grace, Containers: []v1.Container{{Name: "main", Image: image, Command: []string{"/app", "wait"}}}},
	}
}

func TestFloor(t *testing.T) {
	var all []time.Duration
	for range 30 {
		all = append(all, floor(t))
	}
	result("kernel floor: clone + overlay + pivot_root + exec, to its exit, p50", ms(percentile(all, 50)), "")
}

func TestOnePodAfterAnother(t *testing.T) {
	n := harness.Start(t, harness.Config{Images: []string{"app"}})
	n.Create(kube.Pods, pod("warm"))
	n.WaitReady("warm")
	settle(n)
	result("no pods but one: PSS of all worknode processes", n.PSS(), "75 MB")
	before := cpu(n)
	var ready []time.Duration
	for i := range 50 {
		name := "pod-" + strconv.Itoa(i)
		began := time.Now()
		n.Create(kube.Pods, pod(name))
		n.WaitReady(name)
		ready = append(ready, time.Since(began))
	}
	used := (cpu(n) - before) / 50
	result("pod created -> Ready seen in a watch, p50 / p99 of 50", ms(percentile(ready, 50))+" / "+ms(percentile(ready, 99)), "60 ms")
	result("CPU of all worknode processes per pod (children of the monitor included)", ms(used), "50 ms")
	pause(time.Second) // a program that is told to end before it listens for that takes its whole grace
	var gone []time.Duration
	for i := range 50 {
		name := "pod-" + strconv.Itoa(i)
		began := time.Now()
		n.Delete(kube.Pods, name)
		n.WaitPod(name, "gone", 20*time.Second, harness.Gone)
		gone = append(gone, time.Since(began))
	}
	result("pod deleted (it obeys SIGTERM) -> gone, p50 / p99 of 50", ms(percentile(gone, 50))+" / "+ms(percentile(gone, 99)), "")
}

func TestManyPodsAtOnce(t *testing.T) {
	n := harness.Start(t, harness.Config{Images: []string{"app"}})
	n.Create(kube.Pods, pod("warm"))
	n.WaitReady("warm")
	pause(time.Second)
	n.Delete(kube.Pods, "warm")
	n.WaitPod("warm", "gone", 10*time.Second, harness.Gone)
	settle(n)
	result("no pods: PSS of all worknode processes", n.PSS(), "75 MB")
	burst := func(from, to int) time.Duration {
		began := time.Now()
		for i := from; i < to; i++ {
			n.Create(kube.Pods, pod("pod-"+strconv.Itoa(i)))
		}
		for i := from; i < to; i++ {
			n.WaitReady("pod-" + strconv.Itoa(i))
		}
		return time.Since(began)
	}
	result("30 pods at once, all Ready", ms(burst(0, 30)), "1500 ms")
	burst(30, 100)
	settle(n)
	result("100 pods: PSS of all worknode processes", n.PSS(), "130 MB")
	idle := cpu(n)
	began := time.Now()
	pause(10 * time.Second)
	result("100 idle pods: CPU", fmt.Sprintf("%.1f %%", 100*float64(cpu(n)-idle)/float64(time.Since(began))), "")
}

func TestStartOfTheNode(t *testing.T) {
	var all []time.Duration
	for range 5 {
		began := time.Now()
		n := harness.Start(t, harness.Config{Images: []string{"app"}, NoWait: true, Manifests: map[string]string{"pod.yaml": `
apiVersion: v1
kind: Pod
metadata: {name: first}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "` + image + `", command: [/app, wait]}]
`}})
		n.Connect()
		n.WaitReady("first")
		all = append(all, time.Since(began))
		n.Stop()
	}
	result("worknode run -> first pod Ready, image imported too, p50 of 5", ms(percentile(all, 50)), "1500 ms")
}

// One of 1,000 Services gets another endpoint: how long until a new connection reaches it?
func TestEndpointChange(t *testing.T) {
	n := harness.Start(t, harness.Config{Images: []string{"app"}})
	for i, port := range []string{"8001", "8002"} {
		p := pod("server-" + strconv.Itoa(i))
		p.Spec.Containers[0].Command = []string{"/app", "serve", port}
		n.Create(kube.Pods, p)
	}
	ip := []string{n.WaitReady("server-0").Status.PodIP, n.WaitReady("server-1").Status.PodIP}
	port := []int32{8001, 8002}
	slice := func(name string, which int) *discoveryv1.EndpointSlice {
		yes, portName := true, ""
		return &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "bench"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{ip[which]}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
			Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port[which]}},
		}
	}
	before := cpu(n)
	began := time.Now()
	for i := range 1000 {
		name := "svc-" + strconv.Itoa(i)
		n.Create(kube.Services, &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.ServiceSpec{
			ClusterIP: fmt.Sprintf("10.96.%d.%d", 10+i/200, 1+i%200), Ports: []v1.ServicePort{{Port: 80}},
		}})
		n.Create(kube.EndpointSlices, slice(name, 0))
	}
	made := time.Since(began)
	n.Until("the last Service to answer", 20*time.Second, func() bool { return asks(n, "10.96.14.200:80") == "server-0" })
	result("1,000 Services made, all reachable", ms(time.Since(began))+" (API calls "+ms(made)+")", "")
	result("... CPU of all worknode processes", ms(cpu(n)-before), "")
	var all []time.Duration
	before = cpu(n)
	for i := range 100 {
		name := "svc-" + strconv.Itoa((i*37)%1000)
		target := fmt.Sprintf("10.96.%d.%d:80", 10+((i*37)%1000)/200, 1+((i*37)%1000)%200)
		s := slice(name, 1)
		began := time.Now()
		update(t, n, s)
		for asks(n, target) != "server-1" {
			if time.Since(began) > 5*time.Second {
				t.Fatalf("%s does not follow", name)
			}
		}
		all = append(all, time.Since(began))
	}
	result("endpoint changed -> new connections follow, 1,000 Services, p50 / p99 of 100", ms(percentile(all, 50))+" / "+ms(percentile(all, 99)), "10 ms")
	result("... CPU of all worknode processes per change (the asking included)", ms((cpu(n)-before)/100), "")
}

func update(t *testing.T, n *harness.Node, s *discoveryv1.EndpointSlice) {
	t.Helper()
	ctx, end := context.WithTimeout(context.Background(), 5*time.Second)
	defer end()
	var out discoveryv1.EndpointSlice
	if err := n.Kube.Update(ctx, kube.EndpointSlices, "default", s.Name, s, &out); err != nil {
		t.Fatal(err)
	}
}

// settle gives the collectors of the processes time to return what the start needed.
func settle(n *harness.Node) { pause(5 * time.Second) }

func pause(d time.Duration) { <-time.After(d) }

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/1e6) }

func percentile(all []time.Duration, p int) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[min(len(all)-1, len(all)*p/100)]
}

var names = []string{"supervisor", "runtime", "kubelet", "proxy", "monitor"}

// cpu sums user and system time of the node's processes; for the monitor that of its ended children too, because its
// inits run our code before they become the workload.
func cpu(n *harness.Node) (sum time.Duration) {
	for _, name := range names {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(n.Pid(name)) + "/stat")
		if err != nil {
			continue
		}
		f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		last := 13
		if name == "monitor" {
			last = 15
		}
		for _, ticks := range f[11:last] {
			v, _ := strconv.Atoi(ticks)
			sum += time.Duration(v) * 10 * time.Millisecond
		}
	}
	return sum
}

func asks(n *harness.Node, address string) string {
	host, err := n.Ask(address)
	if err != nil {
		return err.Error()
	}
	return host
}
