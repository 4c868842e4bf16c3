package api

import (
	"fmt"
	"strings"
	"testing"

	"worknode/standalone/store"
)

func TestPodIsBoundAndCompleted(t *testing.T) {
	w := start(t)
	pod := w.must(201, "POST", pods, podJSON)
	w.want(pod, "node-1", "spec", "nodeName")
	w.want(pod, "Pending", "status", "phase")
	w.want(pod, "BestEffort", "status", "qosClass")
	w.want(pod, "PodScheduled", "status", "conditions", 0, "type")
	w.want(pod, "True", "status", "conditions", 0, "status")
	w.want(pod, "IfNotPresent", "spec", "containers", 0, "imagePullPolicy")
	w.want(pod, "Always", "spec", "restartPolicy")
	w.want(pod, 1, "metadata", "generation")
	w.want(w.must(409, "POST", pods, podJSON), `pods "web" already exists`, "message")
	w.want(w.must(404, "POST", "/api/v1/namespaces/nowhere/pods", podJSON), `namespaces "nowhere" not found`, "message")
	w.want(w.must(404, "GET", pods+"/other", ""), `pods "other" not found`, "message")
}

func TestPodDeletionWaitsForTheKubelet(t *testing.T) {
	w := start(t)
	w.must(201, "POST", pods, podJSON)
	gone := w.must(200, "DELETE", pods+"/web", `{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":7}`)
	w.want(gone, 7, "metadata", "deletionGracePeriodSeconds")
	w.want(gone, 2, "metadata", "generation")
	if at(gone, "metadata", "deletionTimestamp") == nil {
		t.Error("no deletionTimestamp")
	}
	longer := w.must(200, "DELETE", pods+"/web", `{"gracePeriodSeconds":60}`)
	w.want(longer, 7, "metadata", "deletionGracePeriodSeconds")
	shorter := w.must(200, "DELETE", pods+"/web", `{"gracePeriodSeconds":2}`)
	w.want(shorter, 2, "metadata", "deletionGracePeriodSeconds")
	w.must(409, "DELETE", pods+"/web", `{"gracePeriodSeconds":0,"preconditions":{"uid":"another"}}`)
	uid := at(shorter, "metadata", "uid")
	w.must(200, "DELETE", pods+"/web", fmt.Sprintf(`{"gracePeriodSeconds":0,"preconditions":{"uid":%q}}`, uid))
	w.must(404, "GET", pods+"/web", "")
}

func TestFinalizersHoldAnObject(t *testing.T) {
	w := start(t)
	const cms = "/api/v1/namespaces/default/configmaps"
	w.must(201, "POST", cms, `{"metadata":{"name":"x","finalizers":["example.org/hold"]},"data":{"a":"b"}}`)
	w.must(200, "DELETE", cms+"/x", "")
	w.must(200, "GET", cms+"/x", "")
	w.must(200, "PATCH", cms+"/x", `{"metadata":{"finalizers":null}}`, "Content-Type", "application/merge-patch+json")
	w.must(404, "GET", cms+"/x", "")
}

func TestUpdateConflictsAndNoOps(t *testing.T) {
	w := start(t)
	pod := w.must(201, "POST", pods, podJSON)
	rv := at(pod, "metadata", "resourceVersion")
	same := w.must(200, "PUT", pods+"/web", string(mustJSON(pod)))
	w.want(same, rv, "metadata", "resourceVersion")
	labelled := w.must(200, "PATCH", pods+"/web", `{"metadata":{"labels":{"x":"y"}}}`, "Content-Type", "application/strategic-merge-patch+json")
	if at(labelled, "metadata", "resourceVersion") == rv {
		t.Error("a change kept its resource version")
	}
	w.want(labelled, "web", "metadata", "labels", "app")
	stale := w.must(409, "PUT", pods+"/web", string(mustJSON(pod)))
	w.want(stale, "Conflict", "reason")
	if m := at(stale, "message").(string); !strings.HasPrefix(m, `Operation cannot be fulfilled on pods "web": the object has been modified`) {
		t.Error(m)
	}
	image := w.must(200, "PATCH", pods+"/web", `[{"op":"replace","path":"/spec/containers/0/image","value":"img:2"}]`, "Content-Type", "application/json-patch+json")
	w.want(image, 2, "metadata", "generation")
	bad := w.must(422, "PATCH", pods+"/web", `{"spec":{"restartPolicy":"Never"}}`, "Content-Type", "application/merge-patch+json")
	if m := at(bad, "message").(string); !strings.Contains(m, "pod updates may not change fields other than") || !strings.Contains(m, "spec.restartPolicy") {
		t.Error(m)
	}
}

func TestStatusIsItsOwn(t *testing.T) {
	w := start(t)
	w.must(201, "POST", pods, podJSON)
	patch := `{"spec":{"restartPolicy":"Never"},"status":{"phase":"Running","podIP":"10.0.0.9","podIPs":[{"ip":"10.0.0.9"}]}}`
	pod := w.must(200, "PATCH", pods+"/web/status", patch, "Content-Type", "application/strategic-merge-patch+json")
	w.want(pod, "Always", "spec", "restartPolicy")
	w.want(pod, "Running", "status", "phase")
	w.want(pod, "BestEffort", "status", "qosClass")
	w.want(pod, 1, "metadata", "generation")
	plain := w.must(200, "PATCH", pods+"/web", `{"status":{"phase":"Failed"}}`, "Content-Type", "application/merge-patch+json")
	w.want(plain, "Running", "status", "phase")
}

func TestFieldValidation(t *testing.T) {
	w := start(t)
	const bad = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[{"name":"c","imagee":"i","image":"i:1"}]}}`
	strict := w.must(400, "POST", pods+"?fieldValidation=Strict", bad)
	w.want(strict, `Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.containers[0].imagee"`, "message")
	w.want(strict, "BadRequest", "reason")
	code, _, header := w.do("POST", pods+"?dryRun=All", bad)
	if code != 201 || header.Get("Warning") != `299 - "unknown field \"spec.containers[0].imagee\""` {
		t.Errorf("%d, warning %q", code, header.Get("Warning"))
	}
	if code, _, header := w.do("POST", pods+"?dryRun=All&fieldValidation=Ignore", bad); code != 201 || header.Get("Warning") != "" {
		t.Errorf("%d, warning %q", code, header.Get("Warning"))
	}
	wrong := w.must(400, "POST", pods, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":"c"}}`)
	if m := at(wrong, "message").(string); !strings.Contains(m, "cannot unmarshal string into Go struct field PodSpec.spec.containers") {
		t.Error(m)
	}
	w.want(w.must(404, "GET", pods+"/x", ""), "NotFound", "reason") // dry runs stored nothing
	missing := w.must(422, "POST", pods, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"X_"},"spec":{"containers":[{"name":"c"}]}}`)
	w.want(missing, "Invalid", "reason")
	w.want(missing, "metadata.name", "details", "causes", 0, "field")
	w.want(missing, "spec.containers[0].image", "details", "causes", 1, "field")
}

func TestServicesGetAddresses(t *testing.T) {
	w := start(t)
	const body = `{"apiVersion":"v1","kind":"Service","metadata":{"name":%q},"spec":{"type":"NodePort","selector":{"app":"web"},"ports":[{"port":80}]}}`
	svc := w.must(201, "POST", services, fmt.Sprintf(body, "web"))
	ip, port := at(svc, "spec", "clusterIP").(string), at(svc, "spec", "ports", 0, "nodePort").(float64)
	if !strings.HasPrefix(ip, "10.96.") || port < 30000 || port > 32767 {
		t.Fatalf("clusterIP %s nodePort %v", ip, port)
	}
	w.want(svc, []string{ip}, "spec", "clusterIPs")
	w.want(svc, 80, "spec", "ports", 0, "targetPort")
	w.want(svc, "SingleStack", "spec", "ipFamilyPolicy")
	w.want(svc, "Cluster", "spec", "internalTrafficPolicy")
	// A PUT without addresses keeps them; another service may not take them.
	kept := w.must(200, "PUT", services+"/web", fmt.Sprintf(body, "web"))
	w.want(kept, ip, "spec", "clusterIP")
	w.want(kept, port, "spec", "ports", 0, "nodePort")
	taken := w.must(422, "POST", services, fmt.Sprintf(`{"metadata":{"name":"b"},"spec":{"clusterIP":%q,"ports":[{"port":1}]}}`, ip))
	if m := at(taken, "message").(string); !strings.Contains(m, "provided IP is already allocated") {
		t.Error(m)
	}
	w.must(422, "POST", services, fmt.Sprintf(`{"metadata":{"name":"b"},"spec":{"type":"NodePort","ports":[{"port":1,"nodePort":%v}]}}`, port))
	changed := w.must(422, "PATCH", services+"/web", `{"spec":{"clusterIP":"10.96.9.9","clusterIPs":["10.96.9.9"]}}`, "Content-Type", "application/merge-patch+json")
	if m := at(changed, "message").(string); !strings.Contains(m, "may not change once set") {
		t.Error(m)
	}
	plain := w.must(200, "PATCH", services+"/web", `{"spec":{"type":"ClusterIP"}}`, "Content-Type", "application/merge-patch+json")
	w.want(plain, nil, "spec", "ports", 0, "nodePort")
	// The same name gets the same address again.
	w.must(200, "DELETE", services+"/web", "")
	w.want(w.must(201, "POST", services, fmt.Sprintf(body, "web")), ip, "spec", "clusterIP")
	head := w.must(201, "POST", services, `{"metadata":{"name":"h"},"spec":{"clusterIP":"None","selector":{"a":"b"}}}`)
	w.want(head, "None", "spec", "clusterIP")
}

func TestServiceAddressesRunOut(t *testing.T) {
	w := start(t, func(c *Config) {
		c.ServiceCIDR = c.ServiceCIDR.Masked()
		c.ServiceCIDR, _ = c.ServiceCIDR.Addr().Prefix(29)
	})
	seen := map[string]bool{}
	for i := range 5 { // 8 less network, API, broadcast
		svc := w.must(201, "POST", services, fmt.Sprintf(`{"metadata":{"name":"s%d"},"spec":{"ports":[{"port":1}]}}`, i))
		ip := at(svc, "spec", "clusterIP").(string)
		if seen[ip] {
			t.Fatalf("%s twice", ip)
		}
		seen[ip] = true
	}
	if m := at(w.must(500, "POST", services, `{"metadata":{"name":"more"},"spec":{"ports":[{"port":1}]}}`), "message").(string); !strings.Contains(m, "range is full") {
		t.Error(m)
	}
}

func TestNamespaceEndsWhenItIsEmpty(t *testing.T) {
	w := start(t)
	w.must(201, "POST", "/api/v1/namespaces", `{"metadata":{"name":"team"}}`)
	const in = "/api/v1/namespaces/team/"
	w.must(201, "POST", in+"pods", podJSON)
	w.must(201, "POST", in+"secrets", `{"metadata":{"name":"s"},"stringData":{"a":"b"}}`)
	ns := w.must(200, "DELETE", "/api/v1/namespaces/team", "")
	w.want(ns, "Terminating", "status", "phase")
	w.must(404, "GET", in+"secrets/s", "")
	refused := w.must(403, "POST", in+"configmaps", `{"metadata":{"name":"late"}}`)
	w.want(refused, "NamespaceTerminating", "details", "causes", 0, "reason")
	w.must(200, "DELETE", in+"pods/web?gracePeriodSeconds=0", "")
	w.must(404, "GET", "/api/v1/namespaces/team", "")
	w.must(403, "DELETE", "/api/v1/namespaces/default", "")

	w.must(201, "POST", "/api/v1/namespaces", `{"metadata":{"name":"held","finalizers":["example.org/hold"]}}`)
	w.must(200, "DELETE", "/api/v1/namespaces/held", "")
	w.must(200, "GET", "/api/v1/namespaces/held", "")
	w.must(200, "PATCH", "/api/v1/namespaces/held", `{"metadata":{"finalizers":null}}`, "Content-Type", "application/merge-patch+json")
	w.must(404, "GET", "/api/v1/namespaces/held", "")
}

func TestServerSideApply(t *testing.T) {
	w := start(t)
	const cm = "/api/v1/namespaces/default/configmaps/x?fieldManager="
	apply := func(code int, manager, body, more string) map[string]any {
		t.Helper()
		return w.must(code, "PATCH", cm+manager+more, body, "Content-Type", "application/apply-patch+yaml")
	}
	apply(201, "one", "{apiVersion: v1, kind: ConfigMap, metadata: {name: x}, data: {a: '1', b: '2'}}", "")
	apply(200, "two", "{apiVersion: v1, kind: ConfigMap, data: {c: '3'}}", "")
	clash := apply(409, "two", "{apiVersion: v1, kind: ConfigMap, data: {a: '9'}}", "")
	w.want(clash, "FieldManagerConflict", "details", "causes", 0, "reason")
	w.want(clash, ".data.a", "details", "causes", 0, "field")
	forced := apply(200, "two", "{apiVersion: v1, kind: ConfigMap, data: {a: '9', c: '3'}}", "&force=true")
	w.want(forced, "9", "data", "a")
	// What a manager no longer names goes, what others own stays; a user's own edit stays too.
	w.must(200, "PATCH", "/api/v1/namespaces/default/configmaps/x", `{"data":{"user":"u"}}`, "Content-Type", "application/merge-patch+json")
	last := apply(200, "one", "{apiVersion: v1, kind: ConfigMap, data: {}}", "")
	w.want(last, map[string]any{"a": "9", "c": "3", "user": "u"}, "data")
	rv := at(last, "metadata", "resourceVersion")
	w.want(apply(200, "one", "{apiVersion: v1, kind: ConfigMap, data: {}}", ""), rv, "metadata", "resourceVersion")
}

func TestApplyMergesListsByKey(t *testing.T) {
	w := start(t)
	const svc = services + "/web?fieldManager=m&force=true"
	body := "{apiVersion: v1, kind: Service, spec: {selector: {app: web}, ports: [{port: 80, name: http}, {port: 443, name: tls}]}}"
	one := w.must(201, "PATCH", svc, body, "Content-Type", "application/apply-patch+yaml")
	two := w.must(200, "PATCH", svc, "{apiVersion: v1, kind: Service, spec: {selector: {app: web}, ports: [{port: 80, name: http}]}}", "Content-Type", "application/apply-patch+yaml")
	w.want(two, at(one, "spec", "clusterIP"), "spec", "clusterIP")
	w.want(two, nil, "spec", "ports", 1)
	w.want(two, "http", "spec", "ports", 0, "name")
}

func TestKindsThatAreNotStoredDurablyStillVersion(t *testing.T) {
	w := start(t)
	before := w.store.RV()
	w.must(201, "PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1",
		`{"metadata":{"name":"node-1","namespace":"kube-node-lease"},"spec":{"holderIdentity":"node-1","leaseDurationSeconds":40}}`)
	if w.store.Get(store.Leases, "kube-node-lease", "node-1") == nil || w.store.RV() == before {
		t.Error("the lease was not stored")
	}
}

func TestStrangersAreRefused(t *testing.T) {
	w := start(t)
	w.client.Transport.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	stranger := *w
	stranger.client = strangerTo(w)
	stranger.want(stranger.must(401, "GET", pods, ""), "Unauthorized", "reason")
	if code, body, _ := stranger.do("GET", "/livez", ""); code != 200 || string(body) != "ok" {
		t.Errorf("livez: %d %s", code, body)
	}
}
