package node

import (
	"strings"
	"testing"
	"time"

	"worknode/test/harness"
)

const network = `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "worknode.test/app:1", command: [/app, serve, "8080"], ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: echo, labels: {app: echo}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "worknode.test/app:1", command: [/app, udp, "9000"]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: echo}, ports: [{protocol: UDP, port: 99, targetPort: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: other}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: other}
spec: {selector: {app: web}, ports: [{port: 80}]}
`

const client = `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "worknode.test/app:1", command: [/app, wait]}]
`

// What a program in a pod may expect of the network.
func TestPodsFindEachOther(t *testing.T) {
	n := start(t, harness.Config{Manifests: map[string]string{"network.yaml": network}})
	web, echo := n.WaitReady("web"), n.WaitReady("echo")
	n.Write("client.yaml", client) // after the Services, so that its environment names them
	n.WaitReady("client")
	service := kubectl(t, n, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	n.Until("the Service to answer", 5*time.Second, func() bool {
		out, _ := try(t, n, "client", "/app ask http://$WEB_SERVICE_HOST:$WEB_SERVICE_PORT/")
		return out == "web"
	})
	for _, c := range []struct{ what, script, want string }{
		{"environment", "echo $WEB_SERVICE_HOST $WEB_SERVICE_PORT $WEB_SERVICE_PORT_HTTP $WEB_PORT $KUBERNETES_SERVICE_PORT", service + " 80 80 tcp://" + service + ":80 443"},
		{"pod to pod", "/app ask http://" + web.Status.PodIP + ":8080/", "web"},
		{"by short name", "/app ask http://web/", "web"},
		{"by name and namespace", "/app ask http://web.default/", "web"},
		{"by name, namespace and svc", "/app ask http://web.default.svc/", "web"},
		{"by full name", "/app ask http://web.default.svc.cluster.local/", "web"},
		{"by full name with a dot", "/app ask http://web.default.svc.cluster.local./", "web"},
		{"cluster address in DNS", "/app lookup web", service},
		{"headless", "/app lookup bare", web.Status.PodIP},
		{"UDP by name", "/app dial udp echo:99", "echo"},
		{"UDP to the pod", "/app dial udp " + echo.Status.PodIP + ":9000", "echo"},
		{"NodePort on the node's address", "/app ask http://" + web.Status.HostIP + ":30080/", "web"},
		{"the API", "/app dial tcp kubernetes.default:443", "connected"},
		{"the API by environment", "/app dial tcp $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT", "connected"},
		{"own host name", "hostname", "client"},
		{"own address by own name", "/app lookup client", n.WaitReady("client").Status.PodIP},
	} {
		t.Run(c.what, func(t *testing.T) {
			if got, code := try(t, n, "client", c.script); got != c.want || code != 0 {
				t.Errorf("%s: got %q, exit code %d, want %q", c.script, got, code, c.want)
			}
		})
	}
	t.Run("hairpin", func(t *testing.T) {
		for range 5 {
			if got, _ := try(t, n, "web", "/app ask http://"+service+"/"); got != "web" {
				t.Errorf("a pod that calls its own Service: %q", got)
			}
		}
	})
	t.Run("what is not there is told at once", func(t *testing.T) {
		for script, want := range map[string]string{
			"/app ask http://nobody/":                          "connection refused",
			"/app dial tcp " + web.Status.PodIP + ":81":        "connection refused",
			"/app lookup missing":                              "no such host",
			"/app lookup web.missing.svc.cluster.local":        "no such host",
			"/app lookup far":                                  "no such host", // it is in another namespace
			"/app lookup www.example.com":                      "no such host",
			"/app ask http://" + web.Status.HostIP + ":31999/": "connection refused",
			"/app dial udp nobody:80":                          "refused",
			"/app dial tcp " + service + ":81":                 "refused",
		} {
			began := time.Now()
			got, code := try(t, n, "client", script)
			if took := time.Since(began); code == 0 || !strings.Contains(got, want) || took > harness.Slow(3*time.Second) {
				t.Errorf("%s: %q, exit code %d after %v; want %q soon", script, got, code, took, want)
			}
		}
	})
	t.Run("other namespace", func(t *testing.T) {
		if got := sh(t, n, "client", "/app lookup far.other"); got == "" || got == service {
			t.Errorf("far.other is %q", got)
		}
	})
	t.Run("from the node", func(t *testing.T) {
		for _, address := range []string{service + ":80", web.Status.HostIP + ":30080", web.Status.PodIP + ":8080"} {
			if got, err := n.Ask(address); got != "web" {
				t.Errorf("%s: %q, %v", address, got, err)
			}
		}
	})
}

// A pod on the node's own network has the node's addresses and reaches Services by name when it asks for that.
func TestHostNetworkPod(t *testing.T) {
	n := start(t, harness.Config{Manifests: map[string]string{"a.yaml": network, "b.yaml": `
apiVersion: v1
kind: Pod
metadata: {name: onnode}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: worknode.test/app:1
    command: [/app, serve, "7070"]
    ports: [{containerPort: 7070}]
    readinessProbe: {httpGet: {path: /ready, port: 7070}, periodSeconds: 1}
`}})
	p := n.WaitReady("onnode")
	if p.Status.PodIP != p.Status.HostIP {
		t.Errorf("pod address %s, node address %s", p.Status.PodIP, p.Status.HostIP)
	}
	n.WaitReady("web")
	n.Until("the Service by name", 5*time.Second, func() bool {
		out, _ := try(t, n, "onnode", "/app ask http://web/")
		return out == "web"
	})
	if got := sh(t, n, "web", "/app ask http://"+p.Status.HostIP+":7070/"); got == "" {
		t.Error("the pod does not answer on the node's address")
	}
}
