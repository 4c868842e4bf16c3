package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/test/cluster/bed"
	"worknode/test/harness"
)

const hello = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 2
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: worknode.test/app:1
        args: [serve]
        readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: about, mountPath: /about}]
      volumes:
      - name: about
        downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec: {selector: {app: hello}, ports: [{port: 80, targetPort: 8080}]}
`

// A worknode node joins by its certificate alone, and does what controllers, scheduler and kubectl ask of a node. Nothing
// that it asks of the API server is more than a node may.
func TestNode(t *testing.T) {
	c := bed.Shared(t)
	n := c.Node(t, bed.NodeConfig{})
	c.Apply(t, hello)
	pods := ready(t, c, "app=hello", 2)
	name := pods[0].Name

	t.Run("Services answer inside", func(t *testing.T) {
		ip := strings.TrimSpace(c.Must(t, "get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"))
		seen := map[string]bool{}
		harness.Until(t, "both pods to answer at the Service's address", 10*time.Second, func() bool {
			out, _, _ := c.Kubectl(t, "", "exec", name, "--", "/app", "ask", "http://"+ip+"/")
			seen[strings.TrimSpace(out)] = true
			return seen[pods[0].Name] && seen[pods[1].Name]
		})
	})
	t.Run("pods have a token that the API server takes", func(t *testing.T) {
		has(t, c.Must(t, "exec", name, "--", "/app", "api", "/version"), "200 ", `"minor": "37"`)
		// The answer names the account and what it may not do: it knows who asks.
		has(t, c.Must(t, "exec", name, "--", "/app", "api", "/api/v1/namespaces/default/secrets"), "403 ", "system:serviceaccount:default:default")
	})
	t.Run("the downward API tells", func(t *testing.T) {
		has(t, c.Must(t, "exec", name, "--", "cat", "/about/name"), name)
	})
	t.Run("logs", func(t *testing.T) { has(t, c.Must(t, "logs", name), "serving on 8080") })
	t.Run("a pod that is deleted is gone, and replaced", func(t *testing.T) {
		c.Must(t, "delete", "pod", name, "--wait=false")
		c.WaitPod(t, "default/"+name, "gone", 20*time.Second, harness.Gone)
		ready(t, c, "app=hello", 2)
	})
	t.Run("nothing was denied", func(t *testing.T) {
		all, err := c.Requests(n.By)
		if err != nil || len(all) < 20 {
			t.Fatalf("%d requests of the node, error %v", len(all), err)
		}
		denied(t, c, n)
	})
}

// The node goes on where it was when each of its parts is killed, and no pod notices.
func TestNodePartsAreKilled(t *testing.T) {
	c := bed.Shared(t)
	n := c.Node(t, bed.NodeConfig{})
	c.Apply(t, hello)
	pods := ready(t, c, "app=hello", 2)
	for _, part := range n.Parts() {
		if err := part.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	// What is asked after that is done by the new processes.
	c.Must(t, "scale", "deployment", "hello", "--replicas=3")
	after := ready(t, c, "app=hello", 3)
	for _, was := range pods {
		found := false
		for _, is := range after {
			if is.UID == was.UID {
				found = true
				if id := is.Status.ContainerStatuses[0].ContainerID; id != was.Status.ContainerStatuses[0].ContainerID {
					t.Errorf("pod %s was restarted: container %s, then %s", is.Name, was.Status.ContainerStatuses[0].ContainerID, id)
				}
			}
		}
		if !found {
			t.Errorf("pod %s was replaced", was.Name)
		}
	}
	if err := n.WaitReady(20 * time.Second); err != nil {
		t.Error(err)
	}
	denied(t, c, n)
}

// ready waits until a label selects so many Ready pods of the default namespace that are not about to go.
func ready(t *testing.T, c *bed.Cluster, label string, want int) []*v1.Pod {
	t.Helper()
	key, value, _ := strings.Cut(label, "=")
	var pods []*v1.Pod
	harness.Until(t, fmt.Sprintf("%d Ready pods with %s", want, label), 60*time.Second, func() bool {
		pods = c.Pods(func(p *v1.Pod) bool {
			return p.Namespace == "default" && p.Labels[key] == value && p.DeletionTimestamp == nil && harness.Ready(p)
		})
		return len(pods) == want
	})
	return pods
}

// denied fails the test for every request of the node that the API server refused. One refusal is nobody's fault: the
// node authorizer and the NodeRestriction admission follow the pods at the same time as the node does, and a node that asks
// for what a new pod names, or for its token, within the same millisecond may be the first of them. Such a request must
// have been granted a moment later.
func denied(t *testing.T, c *bed.Cluster, n *bed.Node) {
	t.Helper()
	all, err := c.Requests(func(r bed.Request) bool { return bed.Denied(r) && n.By(r) })
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		early := strings.Contains(r.Reason, "no relationship found between node") || r.Verb == "create" && strings.HasSuffix(r.URI, "/token")
		if early {
			granted, err := c.Requests(func(g bed.Request) bool {
				return g.Code < 300 && g.URI == r.URI && g.Verb == r.Verb && g.User == r.User && g.Time.After(r.Time) && g.Time.Sub(r.Time) < 2*time.Second
			})
			if err == nil && len(granted) > 0 {
				t.Logf("asked before the authorizer knew of the pod: %s %s", r.Verb, r.URI)
				continue
			}
		}
		t.Errorf("denied: %v", r)
	}
}

func has(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in\n%s", part, text)
		}
	}
}
