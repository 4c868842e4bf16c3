package defaults

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"
)

func parse(t *testing.T, text string, out any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), out); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

// like checks an object after defaults against YAML.
func like[T any](t *testing.T, name, before, after string) {
	t.Helper()
	var got, want T
	parse(t, before, &got)
	parse(t, after, &want)
	Object(&got)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got)\n%s", name, d)
	}
	Object(&got)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s changes when defaults are filled in twice\n%s", name, d)
	}
}

func TestPod(t *testing.T) {
	like[corev1.Pod](t, "minimal", `{spec: {containers: [{name: c, image: "i:1"}]}}`, `
spec:
  restartPolicy: Always
  dnsPolicy: ClusterFirst
  schedulerName: default-scheduler
  terminationGracePeriodSeconds: 30
  enableServiceLinks: true
  securityContext: {}
  containers:
  - {name: c, image: "i:1", imagePullPolicy: IfNotPresent, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File}`)
	like[corev1.Pod](t, "all that has defaults", `
spec:
  hostNetwork: true
  serviceAccountName: sa
  initContainers: [{name: i, image: i}]
  containers:
  - name: c
    image: i
    ports: [{containerPort: 80}]
    env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    resources: {limits: {cpu: 1, memory: 64Mi}, requests: {cpu: 100u}}
    securityContext: {runAsUser: 0}
    readinessProbe: {httpGet: {port: 80}}
    livenessProbe: {grpc: {port: 1}, periodSeconds: 3}
    lifecycle: {preStop: {httpGet: {port: 1}}}
  volumes:
  - {name: none}
  - {name: host, hostPath: {path: /x}}
  - {name: cm, configMap: {name: x}}
  - {name: secret, secret: {secretName: x, defaultMode: 256}}
  - {name: down, downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.name}}]}}
  - {name: proj, projected: {sources: [{serviceAccountToken: {path: t}}, {downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.name}}]}}]}}`, `
spec:
  hostNetwork: true
  serviceAccountName: sa
  serviceAccount: sa
  restartPolicy: Always
  dnsPolicy: ClusterFirst
  schedulerName: default-scheduler
  terminationGracePeriodSeconds: 30
  enableServiceLinks: true
  securityContext: {}
  initContainers: [{name: i, image: i, imagePullPolicy: Always, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File}]
  containers:
  - name: c
    image: i
    imagePullPolicy: Always
    terminationMessagePath: /dev/termination-log
    terminationMessagePolicy: File
    ports: [{containerPort: 80, hostPort: 80, protocol: TCP}]
    env: [{name: A, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}}]
    resources: {limits: {cpu: 1, memory: 64Mi}, requests: {cpu: 1m, memory: 64Mi}}
    securityContext: {runAsUser: 0, procMount: Default}
    readinessProbe: {httpGet: {port: 80, path: /, scheme: HTTP}, timeoutSeconds: 1, periodSeconds: 10, successThreshold: 1, failureThreshold: 3}
    livenessProbe: {grpc: {port: 1, service: ""}, timeoutSeconds: 1, periodSeconds: 3, successThreshold: 1, failureThreshold: 3}
    lifecycle: {preStop: {httpGet: {port: 1, path: /, scheme: HTTP}}}
  volumes:
  - {name: none, emptyDir: {}}
  - {name: host, hostPath: {path: /x, type: ""}}
  - {name: cm, configMap: {name: x, defaultMode: 420}}
  - {name: secret, secret: {secretName: x, defaultMode: 256}}
  - {name: down, downwardAPI: {defaultMode: 420, items: [{path: a, fieldRef: {apiVersion: v1, fieldPath: metadata.name}}]}}
  - {name: proj, projected: {defaultMode: 420, sources: [{serviceAccountToken: {path: t, expirationSeconds: 3600}}, {downwardAPI: {items: [{path: a, fieldRef: {apiVersion: v1, fieldPath: metadata.name}}]}}]}}`)
}

func TestPullPolicy(t *testing.T) {
	for image, want := range map[string]corev1.PullPolicy{
		"nginx": corev1.PullAlways, "nginx:latest": corev1.PullAlways, "nginx:1.2": corev1.PullIfNotPresent,
		"reg.example:5000/nginx": corev1.PullAlways, "reg.example:5000/nginx:1": corev1.PullIfNotPresent,
		"nginx@sha256:0123": corev1.PullIfNotPresent, "nginx:latest@sha256:0123": corev1.PullIfNotPresent,
	} {
		if got := PullPolicy(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

func TestService(t *testing.T) {
	like[corev1.Service](t, "cluster IP", `{spec: {ports: [{port: 80}]}}`,
		`{spec: {type: ClusterIP, sessionAffinity: None, internalTrafficPolicy: Cluster, ports: [{port: 80, targetPort: 80, protocol: TCP}]}}`)
	like[corev1.Service](t, "node port with affinity", `{spec: {type: NodePort, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: http}]}}`,
		`{spec: {type: NodePort, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}, internalTrafficPolicy: Cluster, externalTrafficPolicy: Cluster, ports: [{port: 80, targetPort: http, protocol: TCP}]}}`)
	like[corev1.Service](t, "external name", `{spec: {type: ExternalName, externalName: x.example}}`, `{spec: {type: ExternalName, externalName: x.example, sessionAffinity: None}}`)
}

func TestOthers(t *testing.T) {
	like[corev1.Secret](t, "secret", `{stringData: {a: b}, data: {c: ZA==}}`, `{type: Opaque, data: {a: Yg==, c: ZA==}}`)
	like[corev1.Namespace](t, "namespace", `{metadata: {name: x}}`, `{metadata: {name: x, labels: {kubernetes.io/metadata.name: x}}, status: {phase: Active}}`)
	like[corev1.Node](t, "node", `{status: {capacity: {cpu: 2}}}`, `{status: {capacity: {cpu: 2}, allocatable: {cpu: 2}}}`)
	like[discoveryv1.EndpointSlice](t, "slice", `{ports: [{port: 80}]}`, `{ports: [{name: "", port: 80, protocol: TCP}]}`)
	like[corev1.ConfigMap](t, "config map", `{data: {a: b}}`, `{data: {a: b}}`)
}
