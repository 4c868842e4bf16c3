package validate

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// containers checks all containers of a pod; they share one space of names.
func containers(spec *corev1.PodSpec, volumes map[string]bool, path *field.Path) (all field.ErrorList) {
	if len(spec.Containers) == 0 {
		all = append(all, field.Required(path.Child("containers"), ""))
	}
	names := map[string]bool{}
	hostPorts := map[string]bool{}
	each := func(c *corev1.Container, at *field.Path) {
		if c.Name == "" {
			all = append(all, field.Required(at.Child("name"), ""))
		} else {
			all = append(all, msgs(at.Child("name"), c.Name, validation.IsDNS1123Label(c.Name))...)
			if names[c.Name] {
				all = append(all, field.Duplicate(at.Child("name"), c.Name))
			}
			names[c.Name] = true
		}
		all = append(all, container(c, volumes, at)...)
		all = append(all, ports(c.Ports, spec.HostNetwork, hostPorts, at.Child("ports"))...)
	}
	for i := range spec.Containers {
		c, at := &spec.Containers[i], path.Child("containers").Index(i)
		each(c, at)
		all = append(all, handlers(c, at)...)
	}
	for i := range spec.InitContainers {
		c, at := &spec.InitContainers[i], path.Child("initContainers").Index(i)
		each(c, at)
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, handlers(c, at)...)
			continue
		}
		for name, set := range map[string]bool{
			"lifecycle": c.Lifecycle != nil, "livenessProbe": c.LivenessProbe != nil, "readinessProbe": c.ReadinessProbe != nil, "startupProbe": c.StartupProbe != nil,
		} {
			if set {
				all = append(all, field.Forbidden(at.Child(name), "may not be set for init containers without restartPolicy=Always"))
			}
		}
	}
	return all
}

func container(c *corev1.Container, volumes map[string]bool, path *field.Path) (all field.ErrorList) {
	switch {
	case c.Image == "":
		all = append(all, field.Required(path.Child("image"), ""))
	case strings.TrimSpace(c.Image) != c.Image:
		all = append(all, field.Invalid(path.Child("image"), c.Image, "must not have leading or trailing whitespace"))
	}
	all = append(all, oneOf(path.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	all = append(all, oneOf(path.Child("terminationMessagePolicy"), c.TerminationMessagePolicy, corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)...)
	all = append(all, env(c.Env, path.Child("env"))...)
	all = append(all, envFrom(c.EnvFrom, path.Child("envFrom"))...)
	all = append(all, mounts(c.VolumeMounts, volumes, path.Child("volumeMounts"))...)
	all = append(all, resources(&c.Resources, path.Child("resources"))...)
	return append(all, security(c.SecurityContext, path.Child("securityContext"))...)
}

func ports(list []corev1.ContainerPort, hostNetwork bool, hostPorts map[string]bool, path *field.Path) (all field.ErrorList) {
	names := map[string]bool{}
	for i, p := range list {
		at := path.Index(i)
		if p.Name != "" {
			all = append(all, msgs(at.Child("name"), p.Name, validation.IsValidPortName(p.Name))...)
			if names[p.Name] {
				all = append(all, field.Duplicate(at.Child("name"), p.Name))
			}
			names[p.Name] = true
		}
		if p.ContainerPort == 0 {
			all = append(all, field.Required(at.Child("containerPort"), ""))
		} else {
			all = append(all, portNumber(p.ContainerPort, at.Child("containerPort"))...)
		}
		if p.HostPort != 0 {
			all = append(all, portNumber(p.HostPort, at.Child("hostPort"))...)
			if hostNetwork && p.HostPort != p.ContainerPort {
				all = append(all, field.Invalid(at.Child("hostPort"), p.HostPort, "must match `containerPort` when `hostNetwork` is true"))
			}
			use := fmt.Sprintf("%s/%s/%d", p.Protocol, p.HostIP, p.HostPort)
			if hostPorts[use] {
				all = append(all, field.Duplicate(at.Child("hostPort"), use))
			}
			hostPorts[use] = true
		}
		all = append(all, protocol(p.Protocol, at.Child("protocol"))...)
	}
	return all
}

func env(list []corev1.EnvVar, path *field.Path) (all field.ErrorList) {
	for i, e := range list {
		at := path.Index(i)
		if e.Name == "" {
			all = append(all, field.Required(at.Child("name"), ""))
		} else {
			all = append(all, msgs(at.Child("name"), e.Name, validation.IsRelaxedEnvVarName(e.Name))...)
		}
		if e.ValueFrom != nil {
			all = append(all, envSource(&e, at.Child("valueFrom"))...)
		}
	}
	return all
}

func envSource(e *corev1.EnvVar, path *field.Path) (all field.ErrorList) {
	from, kinds := e.ValueFrom, 0
	if f := from.FieldRef; f != nil {
		kinds++
		all = append(all, fieldRef(f, path.Child("fieldRef"))...)
	}
	if r := from.ResourceFieldRef; r != nil {
		kinds++
		if r.Resource == "" {
			all = append(all, field.Required(path.Child("resourceFieldRef", "resource"), ""))
		}
	}
	if k := from.ConfigMapKeyRef; k != nil {
		kinds++
		all = append(all, keyRef(k.Name, k.Key, path.Child("configMapKeyRef"))...)
	}
	if k := from.SecretKeyRef; k != nil {
		kinds++
		all = append(all, keyRef(k.Name, k.Key, path.Child("secretKeyRef"))...)
	}
	if from.FileKeyRef != nil {
		kinds++
	}
	switch {
	case kinds == 0:
		all = append(all, field.Invalid(path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
	case e.Value != "":
		all = append(all, field.Invalid(path, "", "may not be specified when `value` is not empty"))
	case kinds > 1:
		all = append(all, field.Invalid(path, "", "may not have more than one field specified at a time"))
	}
	return all
}

func keyRef(name, key string, path *field.Path) (all field.ErrorList) {
	if name == "" {
		all = append(all, field.Required(path.Child("name"), ""))
	}
	if key == "" {
		return append(all, field.Required(path.Child("key"), ""))
	}
	return append(all, msgs(path.Child("key"), key, validation.IsConfigMapKey(key))...)
}

// podFields are what the downward API gives to environments.
var podFields = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}

func fieldRef(f *corev1.ObjectFieldSelector, path *field.Path) field.ErrorList {
	at := path.Child("fieldPath")
	if f.FieldPath == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	for _, p := range podFields {
		if f.FieldPath == p {
			return nil
		}
	}
	for _, prefix := range []string{"metadata.labels['", "metadata.annotations['"} {
		if strings.HasPrefix(f.FieldPath, prefix) && strings.HasSuffix(f.FieldPath, "']") {
			return nil
		}
	}
	return field.ErrorList{field.NotSupported(at, f.FieldPath, podFields)}
}

func envFrom(list []corev1.EnvFromSource, path *field.Path) (all field.ErrorList) {
	for i, e := range list {
		at := path.Index(i)
		if e.Prefix != "" {
			all = append(all, msgs(at.Child("prefix"), e.Prefix, validation.IsRelaxedEnvVarName(e.Prefix))...)
		}
		if e.ConfigMapRef != nil && e.ConfigMapRef.Name == "" {
			all = append(all, field.Required(at.Child("configMapRef", "name"), ""))
		}
		if e.SecretRef != nil && e.SecretRef.Name == "" {
			all = append(all, field.Required(at.Child("secretRef", "name"), ""))
		}
		switch {
		case e.ConfigMapRef == nil && e.SecretRef == nil:
			all = append(all, field.Invalid(at, "", "must specify one of: `configMapRef` or `secretRef`"))
		case e.ConfigMapRef != nil && e.SecretRef != nil:
			all = append(all, field.Invalid(at, "", "may not have more than one field specified at a time"))
		}
	}
	return all
}

func mounts(list []corev1.VolumeMount, volumes map[string]bool, path *field.Path) (all field.ErrorList) {
	paths := map[string]bool{}
	for i, m := range list {
		at := path.Index(i)
		if m.Name == "" {
			all = append(all, field.Required(at.Child("name"), ""))
		} else if !volumes[m.Name] {
			all = append(all, field.NotFound(at.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			all = append(all, field.Required(at.Child("mountPath"), ""))
		}
		if paths[m.MountPath] {
			all = append(all, field.Invalid(at.Child("mountPath"), m.MountPath, "must be unique"))
		}
		paths[m.MountPath] = true
		if m.SubPath != "" {
			all = append(all, localPath(m.SubPath, at.Child("subPath"))...)
		}
		if m.SubPathExpr != "" {
			all = append(all, localPath(m.SubPathExpr, at.Child("subPathExpr"))...)
			if m.SubPath != "" {
				all = append(all, field.Invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
			}
		}
	}
	return all
}

func resources(r *corev1.ResourceRequirements, path *field.Path) (all field.ErrorList) {
	for name, limit := range r.Limits {
		at := path.Child("limits").Key(string(name))
		all = append(all, quantity(name, limit, at)...)
	}
	for name, request := range r.Requests {
		at := path.Child("requests").Key(string(name))
		all = append(all, quantity(name, request, at)...)
		limit, limited := r.Limits[name]
		if limited && request.Cmp(limit) > 0 {
			all = append(all, field.Invalid(path.Child("requests"), request.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String())))
		}
		extended := strings.Contains(string(name), "/") || strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
		if extended && (!limited || request.Cmp(limit) != 0) {
			all = append(all, field.Invalid(path.Child("requests"), request.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String())))
		}
	}
	return all
}

func quantity(name corev1.ResourceName, q resource.Quantity, path *field.Path) (all field.ErrorList) {
	switch {
	case name == corev1.ResourceCPU, name == corev1.ResourceMemory, name == corev1.ResourceEphemeralStorage:
	case strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
	case strings.Contains(string(name), "/"):
		all = append(all, msgs(path, string(name), validation.IsQualifiedName(string(name)))...)
		if q.MilliValue()%1000 != 0 {
			all = append(all, field.Invalid(path, q.String(), "must be an integer"))
		}
	default:
		all = append(all, field.Invalid(path, string(name), "must be a standard resource for containers"))
	}
	if q.Sign() < 0 {
		all = append(all, field.Invalid(path, q.String(), "must be greater than or equal to 0"))
	}
	return all
}

func security(s *corev1.SecurityContext, path *field.Path) (all field.ErrorList) {
	if s == nil {
		return nil
	}
	if s.RunAsUser != nil {
		all = append(all, msgs(path.Child("runAsUser"), *s.RunAsUser, validation.IsValidUserID(*s.RunAsUser))...)
	}
	if s.RunAsGroup != nil {
		all = append(all, msgs(path.Child("runAsGroup"), *s.RunAsGroup, validation.IsValidGroupID(*s.RunAsGroup))...)
	}
	if e := s.AllowPrivilegeEscalation; e != nil && !*e {
		if isSet(s.Privileged) {
			all = append(all, field.Invalid(path, "", "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
		}
		if s.Capabilities != nil {
			for _, c := range s.Capabilities.Add {
				if c == "CAP_SYS_ADMIN" {
					all = append(all, field.Invalid(path, "", "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"))
				}
			}
		}
	}
	return append(all, seccomp(s.SeccompProfile, path.Child("seccompProfile"))...)
}

// handlers checks probes and hooks.
func handlers(c *corev1.Container, path *field.Path) (all field.ErrorList) {
	all = append(all, probe(c.LivenessProbe, path.Child("livenessProbe"), true)...)
	all = append(all, probe(c.StartupProbe, path.Child("startupProbe"), true)...)
	all = append(all, probe(c.ReadinessProbe, path.Child("readinessProbe"), false)...)
	if p := c.ReadinessProbe; p != nil && p.TerminationGracePeriodSeconds != nil {
		all = append(all, field.Invalid(path.Child("readinessProbe", "terminationGracePeriodSeconds"), *p.TerminationGracePeriodSeconds, "must not be set for readinessProbes"))
	}
	if l := c.Lifecycle; l != nil {
		for name, h := range map[string]*corev1.LifecycleHandler{"postStart": l.PostStart, "preStop": l.PreStop} {
			if h != nil {
				at := path.Child("lifecycle", name)
				all = append(all, handler(h.Exec, h.HTTPGet, h.TCPSocket, nil, h.Sleep, at)...)
			}
		}
	}
	return all
}

func probe(p *corev1.Probe, path *field.Path, onceIsEnough bool) (all field.ErrorList) {
	if p == nil {
		return nil
	}
	all = handler(p.Exec, p.HTTPGet, p.TCPSocket, p.GRPC, nil, path)
	for name, n := range map[string]int32{
		"initialDelaySeconds": p.InitialDelaySeconds, "timeoutSeconds": p.TimeoutSeconds, "periodSeconds": p.PeriodSeconds,
		"successThreshold": p.SuccessThreshold, "failureThreshold": p.FailureThreshold,
	} {
		all = append(all, notNegative(int64(n), path.Child(name))...)
	}
	if onceIsEnough && p.SuccessThreshold != 1 {
		all = append(all, field.Invalid(path.Child("successThreshold"), p.SuccessThreshold, "must be 1"))
	}
	if g := p.TerminationGracePeriodSeconds; g != nil && *g <= 0 {
		all = append(all, field.Invalid(path.Child("terminationGracePeriodSeconds"), *g, "must be greater than 0"))
	}
	return all
}

func handler(exec *corev1.ExecAction, get *corev1.HTTPGetAction, tcp *corev1.TCPSocketAction, grpc *corev1.GRPCAction, sleep *corev1.SleepAction, path *field.Path) (all field.ErrorList) {
	kinds := 0
	one := func(name string) *field.Path {
		if kinds++; kinds > 1 {
			all = append(all, field.Forbidden(path.Child(name), "may not specify more than 1 handler type"))
		}
		return path.Child(name)
	}
	if exec != nil {
		if at := one("exec"); len(exec.Command) == 0 {
			all = append(all, field.Required(at.Child("command"), ""))
		}
	}
	if get != nil {
		at := one("httpGet")
		if get.Path == "" {
			all = append(all, field.Required(at.Child("path"), ""))
		}
		all = append(all, portRef(get.Port, at.Child("port"))...)
		all = append(all, oneOf(at.Child("scheme"), get.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
		for i, h := range get.HTTPHeaders {
			all = append(all, msgs(at.Child("httpHeaders").Index(i), h.Name, validation.IsHTTPHeaderName(h.Name))...)
		}
	}
	if tcp != nil {
		all = append(all, portRef(tcp.Port, one("tcpSocket").Child("port"))...)
	}
	if grpc != nil {
		all = append(all, portNumber(grpc.Port, one("grpc").Child("port"))...)
	}
	if sleep != nil {
		all = append(all, notNegative(sleep.Seconds, one("sleep"))...)
	}
	if kinds == 0 {
		all = append(all, field.Required(path, "must specify a handler type"))
	}
	return all
}

// portRef checks a port that may be a number or a port's name.
func portRef(p intstr.IntOrString, path *field.Path) field.ErrorList {
	if p.Type == intstr.Int {
		return portNumber(p.IntVal, path)
	}
	return msgs(path, p.StrVal, validation.IsValidPortName(p.StrVal))
}
