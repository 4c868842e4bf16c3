package translate

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"worknode/fault"
)

// podOf reads a pod as a user writes it.
func podOf(t *testing.T, text string) *v1.Pod {
	t.Helper()
	var pod v1.Pod
	if err := yaml.UnmarshalStrict([]byte(text), &pod); err != nil {
		t.Fatalf("pod in the test: %v\n%s", err, text)
	}
	if pod.Name == "" {
		pod.Name, pod.Namespace, pod.UID = "web", "shop", "u1"
	}
	return &pod
}

type objects struct {
	configs map[string]map[string]string
	secrets map[string]map[string]string
}

func (o objects) ConfigMap(ns, name string) (*v1.ConfigMap, error) {
	if d, ok := o.configs[name]; ok {
		return &v1.ConfigMap{Data: d}, nil
	}
	return nil, fault.New(fault.NotFound, "configmap %q not found", name)
}

func (o objects) Secret(ns, name string) (*v1.Secret, error) {
	d, ok := o.secrets[name]
	if !ok {
		return nil, fault.New(fault.NotFound, "secret %q not found", name)
	}
	s := &v1.Secret{Data: map[string][]byte{}}
	for k, v := range d {
		s.Data[k] = []byte(v)
	}
	return s, nil
}

var testNode = Node{
	Name: "n1", IPs: []string{"192.0.2.1"}, ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local",
	HostDNS: DNS{Servers: []string{"9.9.9.9"}, Searches: []string{"lan"}, Options: []string{"edns0"}},
	LogRoot: "/var/log/pods", SeccompRoot: "/k/seccomp", HostHosts: []byte("127.0.0.1 localhost\n"),
	Capacity:    v1.ResourceList{"memory": resource.MustParse("10Gi"), "cpu": resource.MustParse("4")},
	Allocatable: v1.ResourceList{"memory": resource.MustParse("8Gi"), "cpu": resource.MustParse("3500m"), "ephemeral-storage": resource.MustParse("20Gi")},
}

func input(pod *v1.Pod) ContainerInput {
	return ContainerInput{Pod: pod, Container: &pod.Spec.Containers[0], Node: testNode, Image: ImageFacts{ID: "sha256:1"},
		PodIPs: []string{"10.0.0.7", "fd00::7"}, Objects: objects{}}
}

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "EMPTY": "", "B": "$(A)"}
	for in, want := range map[string]string{
		"plain": "plain", "$(A)": "1", "x$(A)y$(A)": "x1y1", "$$(A)": "$(A)", "$$$(A)": "$1", "$(NOPE)": "$(NOPE)",
		"$(EMPTY)|": "|", "$(B)": "$(A)", "$A": "$A", "$": "$", "$$": "$", "a$": "a$", "$(A": "$(A", "$()": "$()", "$(A)$": "1$",
	} {
		got := Expand(in, func(n string) (string, bool) { v, ok := vars[n]; return v, ok })
		if got != want {
			t.Errorf("Expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func envOf(c *cri.ContainerConfig) map[string]string {
	out := map[string]string{}
	for _, kv := range c.Envs {
		out[kv.Key] = string(kv.Value)
	}
	return out
}

func TestEnvironmentSources(t *testing.T) {
	pod := podOf(t, `
metadata: {name: web, namespace: shop, uid: u1, labels: {app: cart}, annotations: {note: hi}}
spec:
  nodeName: n1
  serviceAccountName: sa
  enableServiceLinks: true
  containers:
  - name: c
    command: [run, "$(GREETING)", "$(DB_SERVICE_HOST)", "$(NOPE)"]
    args: ["--user=$(USER)"]
    resources: {requests: {cpu: 250m, memory: 10Mi}, limits: {memory: 20Mi}}
    envFrom:
    - configMapRef: {name: base}
    - prefix: S_
      secretRef: {name: creds}
    - configMapRef: {name: gone, optional: true}
    env:
    - {name: COLOR, value: red}
    - {name: GREETING, value: "hello $(USER) in $(COLOR) $$(COLOR) $(LATER)"}
    - {name: LATER, value: x}
    - {name: DB_SERVICE_PORT, value: "1"}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: SA, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu}}}
    - {name: CPUM, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: CPULIM, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: DISK, valueFrom: {resourceFieldRef: {resource: limits.ephemeral-storage, divisor: 1Gi}}}
    - {name: KEY, valueFrom: {configMapKeyRef: {name: base, key: USER}}}
    - {name: PASS, valueFrom: {secretKeyRef: {name: creds, key: pass}}}
    - {name: MAYBE, valueFrom: {secretKeyRef: {name: creds, key: none, optional: true}}}
    - {name: MAYBE2, valueFrom: {configMapKeyRef: {name: none, key: none, optional: true}}}
`)
	in := input(pod)
	in.Objects = objects{
		configs: map[string]map[string]string{"base": {"USER": "ann", "COLOR": "blue", "bad=key": "x", "dotted.key": "ok"}},
		secrets: map[string]map[string]string{"creds": {"pass": "pw"}},
	}
	in.Services = []*v1.Service{
		service("shop", "db", "10.1.1.1", v1.ServicePort{Name: "sql-x", Port: 5432}),
		service("other", "hidden", "10.1.1.2", v1.ServicePort{Port: 1}),
		service("default", "kubernetes", "10.1.0.1", v1.ServicePort{Name: "https", Port: 443}),
		service("shop", "headless", "None", v1.ServicePort{Port: 1}),
		service("shop", "six", "fd00::1", v1.ServicePort{Port: 53, Protocol: "UDP"}),
	}
	got, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"USER": "ann", "COLOR": "red", "dotted.key": "ok", "S_pass": "pw", "GREETING": "hello ann in red $(COLOR) $(LATER)",
		"LATER": "x", "NAME": "web", "APP": "cart", "NOTE": "hi", "NODE": "n1", "SA": "sa", "IP": "10.0.0.7",
		"IPS": "10.0.0.7,fd00::7", "HOST": "192.0.2.1", "CPU": "1", "CPUM": "250", "CPULIM": "4", "MEM": "20", "DISK": "20",
		"KEY": "ann", "PASS": "pw",
		"DB_SERVICE_HOST": "10.1.1.1", "DB_SERVICE_PORT": "1", "DB_SERVICE_PORT_SQL_X": "5432",
		"DB_PORT": "tcp://10.1.1.1:5432", "DB_PORT_5432_TCP": "tcp://10.1.1.1:5432", "DB_PORT_5432_TCP_PROTO": "tcp",
		"DB_PORT_5432_TCP_PORT": "5432", "DB_PORT_5432_TCP_ADDR": "10.1.1.1",
		"KUBERNETES_SERVICE_HOST": "10.1.0.1", "KUBERNETES_SERVICE_PORT": "443", "KUBERNETES_SERVICE_PORT_HTTPS": "443",
		"KUBERNETES_PORT": "tcp://10.1.0.1:443", "KUBERNETES_PORT_443_TCP": "tcp://10.1.0.1:443",
		"KUBERNETES_PORT_443_TCP_PROTO": "tcp", "KUBERNETES_PORT_443_TCP_PORT": "443", "KUBERNETES_PORT_443_TCP_ADDR": "10.1.0.1",
		"SIX_SERVICE_HOST": "fd00::1", "SIX_SERVICE_PORT": "53", "SIX_PORT": "udp://[fd00::1]:53",
		"SIX_PORT_53_UDP": "udp://[fd00::1]:53", "SIX_PORT_53_UDP_PROTO": "udp", "SIX_PORT_53_UDP_PORT": "53", "SIX_PORT_53_UDP_ADDR": "fd00::1",
	}
	if d := cmp.Diff(want, envOf(got)); d != "" {
		t.Errorf("environment (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"run", "hello ann in red $(COLOR) $(LATER)", "10.1.1.1", "$(NOPE)"}, got.Command); d != "" {
		t.Errorf("command: %s", d)
	}
	if got.Args[0] != "--user=ann" {
		t.Errorf("args %q", got.Args)
	}
	off := false
	pod.Spec.EnableServiceLinks = &off
	got, err = Container(in)
	if err != nil {
		t.Fatal(err)
	}
	env := envOf(got)
	if env["KUBERNETES_PORT"] == "" || env["DB_PORT"] != "" {
		t.Errorf("without service links only kubernetes is named, got %v", env)
	}
}

func service(ns, name, ip string, ports ...v1.ServicePort) *v1.Service {
	s := &v1.Service{Spec: v1.ServiceSpec{ClusterIP: ip, Ports: ports}}
	s.Name, s.Namespace = name, ns
	return s
}

// Texts are those users find in the status of real clusters.
func TestConfigErrors(t *testing.T) {
	for name, c := range map[string]struct {
		container, spec, want string
		kind                  fault.Kind
		image                 ImageFacts
	}{
		"missing configmap": {container: `env: [{name: A, valueFrom: {configMapKeyRef: {name: x, key: k}}}]`,
			want: `configmap "x" not found`, kind: fault.NotFound},
		"missing key": {container: `env: [{name: A, valueFrom: {configMapKeyRef: {name: have, key: k}}}]`,
			want: `couldn't find key k in ConfigMap shop/have`, kind: fault.NotFound},
		"missing secret key": {container: `env: [{name: A, valueFrom: {secretKeyRef: {name: have, key: k}}}]`,
			want: `couldn't find key k in Secret shop/have`, kind: fault.NotFound},
		"missing secret in envFrom": {container: `envFrom: [{secretRef: {name: x}}]`, want: `secret "x" not found`, kind: fault.NotFound},
		"unknown field": {container: `env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.foo}}}]`,
			want: `unsupported fieldPath: spec.foo`, kind: fault.Invalid},
		"runs as root": {container: `securityContext: {runAsNonRoot: true, runAsUser: 0}`,
			want: `container's runAsUser breaks non-root policy (pod: "web_shop(u1)", container: c)`, kind: fault.Invalid},
		"image is root": {spec: `securityContext: {runAsNonRoot: true}`,
			want: `container has runAsNonRoot and image will run as root (pod: "web_shop(u1)", container: c)`, kind: fault.Invalid},
		"image names a user": {spec: `securityContext: {runAsNonRoot: true}`, image: ImageFacts{User: "redis"},
			want: `container has runAsNonRoot and image has non-numeric user (redis), cannot verify user is non-root (pod: "web_shop(u1)", container: c)`, kind: fault.Invalid},
		"no such volume": {container: `volumeMounts: [{name: v, mountPath: /v}]`, want: `cannot find volume "v" to mount into container "c"`, kind: fault.NotFound},
		"seccomp leaves its directory": {container: `securityContext: {seccompProfile: {type: Localhost, localhostProfile: ../x}}`,
			want: `seccomp localhostProfile "../x" leaves the node's profile directory`, kind: fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podOf(t, "spec:\n  "+c.spec+"\n  containers:\n  - name: c\n    "+c.container+"\n")
			in := input(pod)
			in.Image = c.image
			in.Objects = objects{map[string]map[string]string{"have": {}}, map[string]map[string]string{"have": {}}}
			_, err := Container(in)
			if err == nil || err.Error() != c.want || !fault.Is(err, c.kind) {
				t.Errorf("got %v (%v)\nwant %s (%v)", err, fault.Of(err), c.want, c.kind)
			}
		})
	}
}

func TestMounts(t *testing.T) {
	pod := podOf(t, `
spec:
  volumes:
  - {name: data, emptyDir: {}}
  - {name: conf, configMap: {name: x}}
  containers:
  - name: c
    terminationMessagePath: /dev/termination-log
    env: [{name: SUB, value: s1}]
    volumeMounts:
    - {name: data, mountPath: /data, mountPropagation: HostToContainer}
    - {name: data, mountPath: relative, readOnly: true, recursiveReadOnly: IfPossible}
    - {name: conf, mountPath: /conf}
    - {name: data, mountPath: /sub, subPathExpr: "a/$(SUB)"}
`)
	in := input(pod)
	in.Volumes = map[string]string{"data": "/h/data", "conf": "/h/conf"}
	in.SubPaths = map[int]string{3: "/h/sub"}
	in.HostsFile, in.TerminationFile = "/h/hosts", "/h/term"
	in.Node.RecursiveReadOnly = true
	got, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, m := range got.Mounts {
		s := m.HostPath + "→" + m.ContainerPath
		if m.Readonly {
			s += " ro"
		}
		if m.RecursiveReadOnly {
			s += " rro"
		}
		if m.Propagation == cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER {
			s += " slave"
		}
		lines = append(lines, s)
	}
	want := []string{"/h/data→/data slave", "/h/data→/relative ro rro", "/h/conf→/conf ro", "/h/sub→/sub",
		"/h/hosts→/etc/hosts", "/h/term→/dev/termination-log"}
	if d := cmp.Diff(want, lines); d != "" {
		t.Error(d)
	}
	if sub, err := SubPath(in, 3); err != nil || sub != "a/s1" {
		t.Errorf("subPathExpr gave %q, %v", sub, err)
	}
	pod.Spec.Containers[0].VolumeMounts[3].SubPathExpr = "$(NOPE)"
	if _, err := Container(in); !fault.Is(err, fault.Invalid) {
		t.Errorf("a missing variable in subPathExpr: %v", err)
	}
	pod.Spec.Containers[0].VolumeMounts[3].SubPathExpr = "../x"
	if _, err := Container(in); !fault.Is(err, fault.Invalid) {
		t.Errorf("a subPath out of its volume: %v", err)
	}
}

func TestUserMountWinsOverHostsFile(t *testing.T) {
	pod := podOf(t, `
spec:
  volumes: [{name: h, hostPath: {path: /etc/hosts}}]
  containers: [{name: c, volumeMounts: [{name: h, mountPath: /etc/hosts}]}]
`)
	in := input(pod)
	in.Volumes, in.HostsFile = map[string]string{"h": "/etc/hosts"}, "/h/hosts"
	got, err := Container(in)
	if err != nil || len(got.Mounts) != 1 || got.Mounts[0].HostPath != "/etc/hosts" {
		t.Errorf("mounts %v, %v", got.GetMounts(), err)
	}
}

func TestQoSAndOOM(t *testing.T) {
	for name, c := range map[string]struct {
		spec string
		qos  v1.PodQOSClass
		oom  int64
	}{
		"nothing":                {`containers: [{name: c}]`, v1.PodQOSBestEffort, 1000},
		"zero is nothing":        {`containers: [{name: c, resources: {requests: {cpu: "0"}}}]`, v1.PodQOSBestEffort, 1000},
		"limits alone":           {`containers: [{name: c, resources: {limits: {cpu: "1", memory: 1Gi}}}]`, v1.PodQOSGuaranteed, -997},
		"request is less":        {`containers: [{name: c, resources: {requests: {memory: 1Gi}, limits: {cpu: "1", memory: 2Gi}}}]`, v1.PodQOSBurstable, 900},
		"cpu alone":              {`containers: [{name: c, resources: {requests: {cpu: "1"}}}]`, v1.PodQOSBurstable, 999},
		"nearly all the memory":  {`containers: [{name: c, resources: {requests: {memory: 20Gi}}}]`, v1.PodQOSBurstable, 3},
		"init counts":            {`{initContainers: [{name: i}], containers: [{name: c, resources: {limits: {cpu: "1", memory: 1Gi}}}]}`, v1.PodQOSBurstable, 900},
		"other resources do not": {`containers: [{name: c, resources: {limits: {example.com/gpu: "1"}}}]`, v1.PodQOSBestEffort, 1000},
		"critical":               {`{priorityClassName: system-node-critical, containers: [{name: c}]}`, v1.PodQOSBestEffort, -997},
		"pod level":              {`{resources: {limits: {cpu: "1", memory: 1Gi}}, containers: [{name: c}]}`, v1.PodQOSGuaranteed, -997},
		"sidecar lives as long":  {`{initContainers: [{name: s, restartPolicy: Always}], containers: [{name: c, resources: {requests: {memory: 5Gi}}}]}`, v1.PodQOSBurstable, 500},
	} {
		pod := podOf(t, "spec: "+braced(c.spec))
		mem := testNode.Capacity[v1.ResourceMemory]
		which := &pod.Spec.Containers[0]
		if strings.HasPrefix(name, "sidecar") {
			which = &pod.Spec.InitContainers[0]
		}
		if q, o := QoS(pod), OOMScoreAdj(pod, which, mem.Value()); q != c.qos || o != c.oom {
			t.Errorf("%s: %s %d, want %s %d", name, q, o, c.qos, c.oom)
		}
	}
}

func braced(s string) string {
	if strings.HasPrefix(s, "{") {
		return s
	}
	return "{" + s + "}"
}

func TestResources(t *testing.T) {
	for name, c := range map[string]struct {
		spec string
		one  *cri.LinuxContainerResources // of the first container
		pod  PodResources
	}{
		"best effort": {`containers: [{name: c}]`,
			&cri.LinuxContainerResources{CpuShares: 2}, PodResources{Shares: 2}},
		"limits": {`containers: [{name: c, resources: {limits: {cpu: 500m, memory: 64Mi}}}]`,
			&cri.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20},
			PodResources{MilliCPU: 500, Shares: 512, QuotaUs: 50000, Memory: 64 << 20}},
		"tiny": {`containers: [{name: c, resources: {requests: {cpu: 1m}, limits: {cpu: 1m}}}]`,
			&cri.LinuxContainerResources{CpuShares: 2, CpuQuota: 1000}, PodResources{MilliCPU: 1, Shares: 2, QuotaUs: 1000}},
		"one without a limit": {`containers: [{name: c, resources: {requests: {cpu: 100m}, limits: {cpu: "1", memory: 1Gi}}}, {name: d, resources: {requests: {cpu: 100m}}}]`,
			&cri.LinuxContainerResources{CpuShares: 102, CpuQuota: 100000, MemoryLimitInBytes: 1 << 30}, PodResources{MilliCPU: 200, Shares: 204}},
		"init raises": {`{initContainers: [{name: i, resources: {limits: {cpu: "2", memory: 1Gi}}}], containers: [{name: c, resources: {limits: {cpu: "1", memory: 2Gi}}}]}`,
			&cri.LinuxContainerResources{CpuShares: 1024, CpuQuota: 100000, MemoryLimitInBytes: 2 << 30},
			PodResources{MilliCPU: 2000, Shares: 2048, QuotaUs: 200000, Memory: 2 << 30}},
	} {
		pod := podOf(t, "spec: "+braced(c.spec))
		got, err := Container(input(pod))
		if err != nil {
			t.Fatal(err)
		}
		r := got.Linux.Resources
		if r.CpuShares != c.one.CpuShares || r.CpuQuota != c.one.CpuQuota || r.MemoryLimitInBytes != c.one.MemoryLimitInBytes || r.CpuPeriod != 100000 {
			t.Errorf("%s: container %v, want %v", name, r, c.one)
		}
		c.pod.Period = 100000
		if d := cmp.Diff(c.pod, ForPod(pod, testNode)); d != "" {
			t.Errorf("%s: pod %s", name, d)
		}
	}
}

func TestGroupOOMOnV2(t *testing.T) {
	in := input(podOf(t, `spec: {containers: [{name: c, resources: {limits: {memory: 1Gi}}}]}`))
	in.Node.CgroupV2 = true
	got, err := Container(in)
	if err != nil || got.Linux.Resources.Unified["memory.oom.group"] != "1" || got.Linux.Resources.MemorySwapLimitInBytes != 1<<30 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestSecurity(t *testing.T) {
	pod := podOf(t, `
spec:
  shareProcessNamespace: true
  hostIPC: true
  securityContext: {runAsUser: 1000, runAsGroup: 2000, fsGroup: 3000, supplementalGroups: [4000], seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: c
    securityContext:
      runAsUser: 1001
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {add: [CAP_NET_ADMIN, SYS_TIME], drop: [ALL]}
  - {name: priv, securityContext: {privileged: true, seccompProfile: {type: Localhost, localhostProfile: a/b.json}}}
`)
	got, err := Container(input(pod))
	if err != nil {
		t.Fatal(err)
	}
	sc := got.Linux.SecurityContext
	if sc.RunAsUser.Value != 1001 || sc.RunAsGroup.Value != 2000 || !sc.NoNewPrivs || !sc.ReadonlyRootfs || sc.Privileged {
		t.Errorf("%v", sc)
	}
	if d := cmp.Diff([]int64{3000, 4000}, sc.SupplementalGroups); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"NET_ADMIN", "SYS_TIME"}, sc.Capabilities.AddCapabilities); d != "" {
		t.Error(d)
	}
	if sc.Seccomp.ProfileType != cri.SecurityProfile_RuntimeDefault || len(sc.MaskedPaths) == 0 || len(sc.ReadonlyPaths) == 0 {
		t.Errorf("%v", sc)
	}
	ns := sc.NamespaceOptions
	if ns.Pid != cri.NamespaceMode_POD || ns.Ipc != cri.NamespaceMode_NODE || ns.Network != cri.NamespaceMode_POD {
		t.Errorf("namespaces %v", ns)
	}
	in := input(pod)
	in.Container = &pod.Spec.Containers[1]
	if got, err = Container(in); err != nil {
		t.Fatal(err)
	}
	sc = got.Linux.SecurityContext
	if !sc.Privileged || len(sc.MaskedPaths) != 0 || sc.Seccomp.LocalhostRef != "/k/seccomp/a/b.json" || sc.NoNewPrivs {
		t.Errorf("%v", sc)
	}
	box, err := Sandbox(pod, testNode, 0, "/kubepods/podu1")
	if err != nil || !box.Linux.SecurityContext.Privileged {
		t.Errorf("a sandbox for a privileged container must say so: %v %v", box, err)
	}
}

func TestDefaultsOfABareContainer(t *testing.T) {
	in := input(podOf(t, `spec: {containers: [{name: c, image: "img:1"}]}`))
	in.RestartCount = 3
	got, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	sc := got.Linux.SecurityContext
	if sc.RunAsUser.GetValue() != 0 || sc.RunAsUser == nil || sc.Seccomp.ProfileType != cri.SecurityProfile_Unconfined || sc.NoNewPrivs {
		t.Errorf("%v", sc)
	}
	if sc.NamespaceOptions.Pid != cri.NamespaceMode_CONTAINER {
		t.Error("a container has its own PID namespace")
	}
	if got.LogPath != "c/3.log" || got.Metadata.Attempt != 3 || got.Image.Image != "sha256:1" || got.Image.UserSpecifiedImage != "img:1" {
		t.Errorf("%v", got)
	}
	if got.Annotations[NoteRestartCount] != "3" || got.Annotations[NoteHash] != Hash(in.Container) || got.Labels[LabelContainerName] != "c" {
		t.Errorf("%v %v", got.Annotations, got.Labels)
	}
}

func TestHashFollowsNameAndImageOnly(t *testing.T) {
	a := v1.Container{Name: "c", Image: "i:1"}
	b := a
	b.Resources.Limits = v1.ResourceList{"cpu": resource.MustParse("1")}
	if Hash(&a) != Hash(&b) {
		t.Error("resources change in place: the hash must stay")
	}
	b.Image = "i:2"
	if Hash(&a) == Hash(&b) {
		t.Error("another image must give another hash")
	}
}

func TestSandbox(t *testing.T) {
	pod := podOf(t, `
metadata: {name: web, namespace: shop, uid: u1, labels: {app: cart, io.kubernetes.pod.uid: forged}, annotations: {a: b}}
spec:
  hostname: h
  subdomain: sub
  securityContext: {sysctls: [{name: net.ipv4.tcp_syncookies, value: "1"}, {name: net/ipv4/conf/eth0.1/forwarding, value: "1"}]}
  containers:
  - {name: c, ports: [{containerPort: 80, hostPort: 8080, protocol: UDP, hostIP: 127.0.0.1}, {containerPort: 81}]}
`)
	got, err := Sandbox(pod, testNode, 2, "/kp/podu1")
	if err != nil {
		t.Fatal(err)
	}
	if got.Hostname != "h" || got.LogDirectory != "/var/log/pods/shop_web_u1" || got.Metadata.Attempt != 2 || got.Linux.CgroupParent != "/kp/podu1" {
		t.Errorf("%v", got)
	}
	if d := cmp.Diff(map[string]string{"app": "cart", LabelPodName: "web", LabelPodNamespace: "shop", LabelPodUID: "u1"}, got.Labels); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]string{"net.ipv4.tcp_syncookies": "1", "net.ipv4.conf.eth0/1.forwarding": "1"}, got.Linux.Sysctls); d != "" {
		t.Error(d)
	}
	if len(got.PortMappings) != 1 || got.PortMappings[0].HostPort != 8080 || got.PortMappings[0].Protocol != cri.Protocol_UDP {
		t.Errorf("%v", got.PortMappings)
	}
	yes := true
	pod.Spec.SetHostnameAsFQDN = &yes
	if got, err = Sandbox(pod, testNode, 0, ""); err != nil || got.Hostname != "h.sub.shop.svc.cluster.local" {
		t.Errorf("%v %v", got.GetHostname(), err)
	}
	pod.Spec.Subdomain = strings.Repeat("s", 60)
	if _, err = Sandbox(pod, testNode, 0, ""); !fault.Is(err, fault.Invalid) {
		t.Errorf("an FQDN the kernel cannot hold: %v", err)
	}
	pod.Spec.HostNetwork = true
	if got, err = Sandbox(pod, testNode, 0, ""); err != nil || got.Hostname != "" || len(got.PortMappings) != 0 {
		t.Errorf("%v %v", got, err)
	}
}

func TestDNS(t *testing.T) {
	value := "3"
	for name, c := range map[string]struct {
		spec    v1.PodSpec
		node    func(*Node)
		want    DNS
		missing bool
	}{
		"cluster":      {want: DNS{[]string{"10.96.0.10"}, []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan"}, []string{"ndots:5"}}},
		"default":      {spec: v1.PodSpec{DNSPolicy: v1.DNSDefault}, want: testNode.HostDNS},
		"host network": {spec: v1.PodSpec{DNSPolicy: v1.DNSClusterFirst, HostNetwork: true}, want: testNode.HostDNS},
		"host network, cluster": {spec: v1.PodSpec{DNSPolicy: v1.DNSClusterFirstWithHostNet, HostNetwork: true},
			want: DNS{[]string{"10.96.0.10"}, []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan"}, []string{"ndots:5"}}},
		"no cluster DNS": {node: func(n *Node) { n.ClusterDNS = nil }, want: testNode.HostDNS, missing: true},
		"none": {spec: v1.PodSpec{DNSPolicy: v1.DNSNone, DNSConfig: &v1.PodDNSConfig{Nameservers: []string{"1.1.1.1", "1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"}}},
			want: DNS{Servers: []string{"1.1.1.1", "2.2.2.2", "3.3.3.3"}, Searches: []string{}}},
		"own options win": {spec: v1.PodSpec{DNSConfig: &v1.PodDNSConfig{Searches: []string{"lan", "x"}, Options: []v1.PodDNSConfigOption{{Name: "ndots", Value: &value}, {Name: "debug"}}}},
			want: DNS{[]string{"10.96.0.10"}, []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan", "x"}, []string{"ndots:3", "debug"}}},
	} {
		node := testNode
		if c.node != nil {
			c.node(&node)
		}
		got, missing := PodDNS(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}, Spec: c.spec}, node)
		if d := cmp.Diff(c.want, got); d != "" || missing != c.missing {
			t.Errorf("%s: missing=%v %s", name, missing, d)
		}
	}
	parsed := ParseResolvConf([]byte("# c\nnameserver 1.1.1.1 # x\nsearch old\nsearch a. b .\noptions ndots:2 rotate\nnameserver 2.2.2.2\njunk\nnameserver\n"))
	if d := cmp.Diff(DNS{[]string{"1.1.1.1", "2.2.2.2"}, []string{"a", "b", "."}, []string{"ndots:2", "rotate"}}, parsed); d != "" {
		t.Error(d)
	}
}

func TestHostsFile(t *testing.T) {
	pod := podOf(t, `
spec:
  subdomain: sub
  hostAliases: [{ip: 1.2.3.4, hostnames: [a, b]}]
  containers: [{name: c}]
`)
	text := string(HostsFile(pod, []string{"10.0.0.7"}, testNode))
	for _, line := range []string{"# Kubernetes-managed hosts file.\n", "127.0.0.1\tlocalhost\n", "10.0.0.7\tweb.sub.shop.svc.cluster.local\tweb\n", "1.2.3.4\ta\tb\n"} {
		if !strings.Contains(text, line) {
			t.Errorf("hosts file lacks %q:\n%s", line, text)
		}
	}
	pod.Spec.HostNetwork = true
	text = string(HostsFile(pod, nil, testNode))
	if !strings.HasPrefix(text, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n") || !strings.Contains(text, "1.2.3.4\ta\tb\n") {
		t.Errorf("%s", text)
	}
}

func TestHostNameOfALongPodName(t *testing.T) {
	pod := podOf(t, `spec: {containers: [{name: c}]}`)
	pod.Name = strings.Repeat("a", 62) + "-bcd"
	if host, _ := HostName(pod, testNode); host != strings.Repeat("a", 62) {
		t.Errorf("%q: a label has at most 63 characters and no dash at its end", host)
	}
}

func TestDownwardMaps(t *testing.T) {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"b": "x\ny", "a": `q"`}}}
	got, err := Field(pod, "metadata.labels")
	if want := "a=\"q\\\"\"\nb=\"x\\ny\""; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if _, err := Field(pod, "status.podIP"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a volume may not name addresses: %v", err)
	}
}
