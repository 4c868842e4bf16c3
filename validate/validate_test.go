package validate

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"worknode/defaults"
)

func parse[T any](t *testing.T, text string) *T {
	t.Helper()
	out := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), out); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	defaults.Object(out)
	return out
}

// same compares errors by their text, in any order; want may give the beginning of each.
func same(t *testing.T, name string, got []string, want []string) {
	t.Helper()
	left := slices.Clone(want)
	for _, g := range got {
		i := slices.IndexFunc(left, func(w string) bool { return strings.HasPrefix(g, w) })
		if i < 0 {
			t.Errorf("%s: unexpected %s", name, g)
			continue
		}
		left = slices.Delete(left, i, i+1)
	}
	for _, w := range left {
		t.Errorf("%s: missing %s", name, w)
	}
}

func podOf(t *testing.T, spec string) *corev1.Pod {
	return parse[corev1.Pod](t, "metadata: {name: p, namespace: default}\nspec: "+spec)
}

func TestPodSpecs(t *testing.T) {
	const ok = `containers: [{name: c, image: i}]`
	for _, c := range []struct {
		spec string
		want []string
	}{
		{`{` + ok + `}`, nil},
		{`{containers: []}`, []string{`spec.containers: Required value`}},
		{`{containers: [{image: i}]}`, []string{`spec.containers[0].name: Required value`}},
		{`{containers: [{name: c}]}`, []string{`spec.containers[0].image: Required value`}},
		{`{containers: [{name: C_, image: " i"}]}`, []string{`spec.containers[0].name: Invalid value: "C_": a lowercase RFC 1123 label`, `spec.containers[0].image: Invalid value: " i": must not have leading or trailing whitespace`}},
		{`{containers: [{name: c, image: i}, {name: c, image: i}]}`, []string{`spec.containers[1].name: Duplicate value: "c"`}},
		{`{initContainers: [{name: c, image: i}], ` + ok + `}`, []string{`spec.initContainers[0].name: Duplicate value: "c"`}},
		{`{restartPolicy: Sometimes, ` + ok + `}`, []string{`spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"`}},
		{`{dnsPolicy: None, ` + ok + `}`, []string{"spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None"}},
		{`{terminationGracePeriodSeconds: -1, ` + ok + `}`, []string{`spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0`}},
		{`{activeDeadlineSeconds: 0, ` + ok + `}`, []string{`spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and`}},
		{`{containers: [{name: c, image: i, ports: [{containerPort: 0}, {containerPort: 70000}, {containerPort: 1, name: UPPER}, {containerPort: 2, protocol: ICMP}]}]}`, []string{
			`spec.containers[0].ports[0].containerPort: Required value`,
			`spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive`,
			`spec.containers[0].ports[2].name: Invalid value: "UPPER": must contain only alpha-numeric`, `spec.containers[0].ports[2].name: Invalid value: "UPPER": must contain at least one letter`,
			`spec.containers[0].ports[3].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"`}},
		{`{containers: [{name: c, image: i, ports: [{containerPort: 1, name: a}, {containerPort: 2, name: a}]}]}`, []string{`spec.containers[0].ports[1].name: Duplicate value: "a"`}},
		{`{containers: [{name: c, image: i, ports: [{containerPort: 1, hostPort: 8}, {containerPort: 2, hostPort: 8}]}]}`, []string{`spec.containers[0].ports[1].hostPort: Duplicate value: "TCP//8"`}},
		{`{containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /x}]}]}`, []string{`spec.containers[0].volumeMounts[0].name: Not found: "v"`}},
		{`{volumes: [{name: v, emptyDir: {}}], containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /x}, {name: v, mountPath: /x}]}]}`, []string{`spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/x": must be unique`}},
		{`{volumes: [{name: v, emptyDir: {}}], containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /x, subPath: ../y}]}]}`, []string{`spec.containers[0].volumeMounts[0].subPath: Invalid value: "../y": must not contain '..'`}},
		{`{volumes: [{name: v}, {name: v, emptyDir: {}, hostPath: {path: /x}}], ` + ok + `}`, []string{`spec.volumes[1].name: Duplicate value: "v"`, `spec.volumes[1].emptyDir: Forbidden: may not specify more than 1 volume type`}},
		{`{volumes: [{name: v, secret: {}}, {name: w, configMap: {items: [{key: a, path: /b}]}}], ` + ok + `}`, []string{`spec.volumes[0].secret.secretName: Required value`, `spec.volumes[1].configMap.name: Required value`, `spec.volumes[1].configMap.items[0].path: Invalid value: "/b": must be a relative path`}},
		{`{containers: [{name: c, image: i, resources: {requests: {cpu: 2}, limits: {cpu: 1}}}]}`, []string{`spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1`}},
		{`{containers: [{name: c, image: i, resources: {limits: {cpus: 1, memory: -1}}}]}`, []string{
			`spec.containers[0].resources.limits[cpus]: Invalid value: "cpus": must be a standard resource for containers`, `spec.containers[0].resources.requests[cpus]: Invalid value: "cpus": must be a standard resource for containers`,
			`spec.containers[0].resources.limits[memory]: Invalid value: "-1": must be greater than or equal to 0`, `spec.containers[0].resources.requests[memory]: Invalid value: "-1": must be greater than or equal to 0`}},
		{`{containers: [{name: c, image: i, env: [{name: ""}, {name: A, value: x, valueFrom: {secretKeyRef: {name: s, key: k}}}, {name: B, valueFrom: {}}, {name: C, valueFrom: {fieldRef: {fieldPath: spec.foo}}}]}]}`, []string{
			`spec.containers[0].env[0].name: Required value`,
			"spec.containers[0].env[1].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
			`spec.containers[0].env[2].valueFrom: Invalid value: "": must specify one of:`,
			`spec.containers[0].env[3].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.foo"`}},
		{`{containers: [{name: c, image: i, envFrom: [{}, {configMapRef: {}}]}]}`, []string{"spec.containers[0].envFrom[0]: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`", `spec.containers[0].envFrom[1].configMapRef.name: Required value`}},
		{`{containers: [{name: c, image: i, livenessProbe: {successThreshold: 2, exec: {command: [x]}}, readinessProbe: {}, startupProbe: {tcpSocket: {port: 0}}}]}`, []string{
			`spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1`,
			`spec.containers[0].readinessProbe: Required value: must specify a handler type`,
			`spec.containers[0].startupProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive`}},
		{`{containers: [{name: c, image: i, livenessProbe: {exec: {command: [x]}, tcpSocket: {port: 1}}}]}`, []string{`spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type`}},
		{`{initContainers: [{name: i, image: i, livenessProbe: {tcpSocket: {port: 1}}}], ` + ok + `}`, []string{`spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always`}},
		{`{initContainers: [{name: i, image: i, restartPolicy: Always, livenessProbe: {tcpSocket: {port: 1}}}], ` + ok + `}`, nil},
		{`{hostNetwork: true, containers: [{name: c, image: i, ports: [{containerPort: 1, hostPort: 2}]}]}`, []string{"spec.containers[0].ports[0].hostPort: Invalid value: 2: must match `containerPort` when `hostNetwork` is true"}},
		{`{securityContext: {runAsUser: -1, seccompProfile: {type: Localhost}}, ` + ok + `}`, []string{`spec.securityContext.runAsUser: Invalid value: -1`, `spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost`}},
		{`{containers: [{name: c, image: i, securityContext: {privileged: true, allowPrivilegeEscalation: false}}]}`, []string{"spec.containers[0].securityContext: Invalid value: \"\": cannot set `allowPrivilegeEscalation` to false and `privileged` to true"}},
		{`{tolerations: [{operator: Equal}], nodeSelector: {"a b": c}, hostname: A.b, ` + ok + `}`, []string{`spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists when`, `spec.nodeSelector: Invalid value: "a b"`, `spec.hostname: Invalid value: "A.b"`}},
	} {
		var got []string
		for _, e := range Create(podOf(t, c.spec)) {
			got = append(got, e.Error())
		}
		same(t, c.spec, got, c.want)
	}
}

func TestPodUpdates(t *testing.T) {
	const old = `{containers: [{name: c, image: "i:1", env: [{name: A, value: b}]}], tolerations: [{key: a, operator: Exists}], activeDeadlineSeconds: 10}`
	for change, want := range map[string]string{
		`i:1 → i:2`:                 "",
		`value: b → value: c`:       "spec: Forbidden: pod updates may not change fields other than",
		`Seconds: 10 → Seconds: 5`:  "",
		`Seconds: 10 → Seconds: 50`: "spec.activeDeadlineSeconds: Invalid value: 50: must be less than or equal to previous value",
		`key: a, → key: b,`:         "spec.tolerations: Forbidden: existing toleration can not be modified",
		`name: c, → name: d,`:       "spec: Forbidden: pod updates",
	} {
		from, to, _ := strings.Cut(change, " → ")
		var got []string
		for _, e := range PodUpdate(podOf(t, strings.Replace(old, from, to, 1)), podOf(t, old)) {
			got = append(got, e.Error())
		}
		if want == "" {
			same(t, change, got, nil)
		} else {
			same(t, change, got, []string{want})
		}
		if from == "value: b" && !strings.Contains(got[0], "changed: spec.containers[0].env[0].value") {
			t.Errorf("does not name the field: %s", got[0])
		}
	}
}

func TestServices(t *testing.T) {
	for spec, want := range map[string][]string{
		`{ports: [{port: 80}]}`:                               nil,
		`{selector: {a: b}}`:                                  {`spec.ports: Required value`},
		`{clusterIP: None}`:                                   nil,
		`{type: Weird, ports: [{port: 80}]}`:                  {`spec.type: Unsupported value: "Weird"`},
		`{ports: [{port: 80}, {port: 81}]}`:                   {`spec.ports[0].name: Required value`, `spec.ports[1].name: Required value`},
		`{ports: [{port: 80, name: a}, {port: 80, name: a}]}`: {`spec.ports[1].name: Duplicate value: "a"`, `spec.ports[1]: Duplicate value`},
		`{ports: [{port: 0, targetPort: 1}, {port: 1, name: b, targetPort: Not_a_port}]}`: {`spec.ports[0].name: Required value`, `spec.ports[0].port: Invalid value: 0`, `spec.ports[1].targetPort: Invalid value: "Not_a_port"`},
		`{ports: [{port: 1, nodePort: 30001}]}`:                                           {"spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"},
		`{clusterIP: 300.1.1.1, ports: [{port: 1}]}`:                                      {`spec.clusterIP: Invalid value: "300.1.1.1"`},
		`{type: NodePort, clusterIP: None, ports: [{port: 1}]}`:                           {`spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services`},
		`{type: ExternalName, externalName: a.example}`:                                   nil,
		`{sessionAffinity: Maybe, ports: [{port: 1}]}`:                                    {`spec.sessionAffinity: Unsupported value: "Maybe"`},
		`{selector: {"a/b/c": d}, ports: [{port: 1}]}`:                                    {`spec.selector: Invalid value: "a/b/c"`},
	} {
		var got []string
		for _, e := range Create(parse[corev1.Service](t, "metadata: {name: s, namespace: default}\nspec: "+spec)) {
			got = append(got, e.Error())
		}
		same(t, spec, got, want)
	}
}

func TestConfigMapsAndSecrets(t *testing.T) {
	text := func(list []string, err interface{ Error() string }) []string { return append(list, err.Error()) }
	var got []string
	for _, e := range Create(parse[corev1.ConfigMap](t, `{metadata: {name: UPPER, namespace: d}, data: {"a b": c, both: x}, binaryData: {both: eA==}}`)) {
		got = text(got, e)
	}
	same(t, "config map", got, []string{`metadata.name: Invalid value: "UPPER": a lowercase RFC 1123 subdomain`, `data[a b]: Invalid value: "a b"`, `data[both]: Invalid value: "both": duplicate of key present in binaryData`})
	big := parse[corev1.ConfigMap](t, `{metadata: {name: big, namespace: d}}`)
	big.Data = map[string]string{"a": strings.Repeat("x", maxData+1)}
	if errs := Create(big); len(errs) != 1 || !strings.Contains(errs[0].Error(), "may not be more than 1048576 bytes") {
		t.Errorf("too big: %v", errs)
	}
	got = nil
	old := parse[corev1.ConfigMap](t, `{metadata: {name: x, namespace: d, resourceVersion: "1"}, immutable: true, data: {a: b}}`)
	for _, e := range Update(parse[corev1.ConfigMap](t, `{metadata: {name: x, namespace: d, resourceVersion: "1"}, data: {a: c}}`), old) {
		got = text(got, e)
	}
	same(t, "immutable", got, []string{"immutable: Forbidden: field is immutable when `immutable` is set", "data: Forbidden: field is immutable when `immutable` is set"})
	got = nil
	for _, e := range Create(parse[corev1.Secret](t, `{metadata: {name: x, namespace: d}, type: kubernetes.io/tls, data: {tls.crt: ""}}`)) {
		got = text(got, e)
	}
	same(t, "tls secret", got, []string{`data[tls.key]: Required value`})
	got = nil
	was := parse[corev1.Secret](t, `{metadata: {name: x, namespace: d, resourceVersion: "1"}}`)
	for _, e := range Update(parse[corev1.Secret](t, `{metadata: {name: x, namespace: d, resourceVersion: "1"}, type: other}`), was) {
		got = text(got, e)
	}
	same(t, "secret type", got, []string{`type: Invalid value: "other": field is immutable`})
}
