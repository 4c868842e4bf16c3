package validate

import (
	"fmt"
	"math"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func equal(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }

// Pod checks a new pod's spec.
func Pod(pod *corev1.Pod) field.ErrorList {
	spec, path := &pod.Spec, field.NewPath("spec")
	all, volumes := volumes(spec.Volumes, path.Child("volumes"))
	all = append(all, containers(spec, volumes, path)...)
	all = append(all, oneOf(path.Child("restartPolicy"), spec.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	all = append(all, oneOf(path.Child("dnsPolicy"), spec.DNSPolicy, corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)...)
	all = append(all, dns(spec, path)...)
	all = append(all, metav1validation.ValidateLabels(spec.NodeSelector, path.Child("nodeSelector"))...)
	all = append(all, podSecurity(spec, path.Child("securityContext"))...)
	if spec.ServiceAccountName != "" {
		all = append(all, msgs(path.Child("serviceAccountName"), spec.ServiceAccountName, apivalidation.ValidateServiceAccountName(spec.ServiceAccountName, false))...)
	}
	if spec.NodeName != "" {
		all = append(all, msgs(path.Child("nodeName"), spec.NodeName, apivalidation.NameIsDNSSubdomain(spec.NodeName, false))...)
	}
	if s := spec.ActiveDeadlineSeconds; s != nil && (*s < 1 || *s > math.MaxInt32) {
		all = append(all, field.Invalid(path.Child("activeDeadlineSeconds"), *s, validation.InclusiveRangeError(1, math.MaxInt32)))
	}
	if s := spec.TerminationGracePeriodSeconds; s != nil {
		all = append(all, notNegative(*s, path.Child("terminationGracePeriodSeconds"))...)
	}
	if spec.Hostname != "" {
		all = append(all, msgs(path.Child("hostname"), spec.Hostname, validation.IsDNS1123Label(spec.Hostname))...)
	}
	if spec.Subdomain != "" {
		all = append(all, msgs(path.Child("subdomain"), spec.Subdomain, validation.IsDNS1123Label(spec.Subdomain))...)
	}
	for i, a := range spec.HostAliases {
		all = append(all, validation.IsValidIP(path.Child("hostAliases").Index(i).Child("ip"), a.IP)...)
		for j, h := range a.Hostnames {
			all = append(all, msgs(path.Child("hostAliases").Index(i).Child("hostnames").Index(j), h, validation.IsDNS1123Subdomain(h))...)
		}
	}
	for i, s := range spec.ImagePullSecrets {
		if s.Name == "" {
			all = append(all, field.Required(path.Child("imagePullSecrets").Index(i).Child("name"), ""))
		}
	}
	if r := spec.Resources; r != nil {
		all = append(all, resources(r, path.Child("resources"))...)
	}
	return append(all, tolerations(spec.Tolerations, path.Child("tolerations"))...)
}

func dns(spec *corev1.PodSpec, path *field.Path) (all field.ErrorList) {
	c, at := spec.DNSConfig, path.Child("dnsConfig")
	if spec.DNSPolicy == corev1.DNSNone && (c == nil || len(c.Nameservers) == 0) {
		return field.ErrorList{field.Required(at.Child("nameservers"), fmt.Sprintf("must provide at least one DNS nameserver when `dnsPolicy` is %s", corev1.DNSNone))}
	}
	if c == nil {
		return nil
	}
	if len(c.Nameservers) > 3 {
		all = append(all, field.Invalid(at.Child("nameservers"), c.Nameservers, "must not have more than 3 nameservers"))
	}
	for i, s := range c.Nameservers {
		all = append(all, validation.IsValidIP(at.Child("nameservers").Index(i), s)...)
	}
	if len(c.Searches) > 32 {
		all = append(all, field.Invalid(at.Child("searches"), c.Searches, "must not have more than 32 search paths"))
	}
	for i, o := range c.Options {
		if o.Name == "" {
			all = append(all, field.Required(at.Child("options").Index(i), "must not be empty"))
		}
	}
	return all
}

func podSecurity(spec *corev1.PodSpec, path *field.Path) (all field.ErrorList) {
	s := spec.SecurityContext
	if s == nil {
		return nil
	}
	id := func(v *int64, name string) {
		if v != nil {
			all = append(all, msgs(path.Child(name), *v, validation.IsValidUserID(*v))...)
		}
	}
	id(s.RunAsUser, "runAsUser")
	id(s.RunAsGroup, "runAsGroup")
	id(s.FSGroup, "fsGroup")
	for i, g := range s.SupplementalGroups {
		all = append(all, msgs(path.Child("supplementalGroups").Index(i), g, validation.IsValidGroupID(g))...)
	}
	if s := spec.ShareProcessNamespace; isSet(s) && spec.HostPID {
		all = append(all, field.Invalid(path.Child("shareProcessNamespace"), *s, "ShareProcessNamespace and HostPID cannot both be enabled"))
	}
	names := map[string]bool{}
	for i, c := range s.Sysctls {
		at := path.Child("sysctls").Index(i).Child("name")
		if c.Name == "" {
			all = append(all, field.Required(at, ""))
		} else if names[c.Name] {
			all = append(all, field.Duplicate(at, c.Name))
		}
		names[c.Name] = true
	}
	return append(all, seccomp(s.SeccompProfile, path.Child("seccompProfile"))...)
}

func seccomp(p *corev1.SeccompProfile, path *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	all := oneOf(path.Child("type"), p.Type, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
	if p.Type == corev1.SeccompProfileTypeLocalhost && (p.LocalhostProfile == nil || *p.LocalhostProfile == "") {
		all = append(all, field.Required(path.Child("localhostProfile"), "must be set when seccomp type is Localhost"))
	}
	if p.Type != corev1.SeccompProfileTypeLocalhost && p.LocalhostProfile != nil {
		all = append(all, field.Invalid(path.Child("localhostProfile"), *p.LocalhostProfile, "can only be set when seccomp type is Localhost"))
	}
	return all
}

func tolerations(list []corev1.Toleration, path *field.Path) (all field.ErrorList) {
	for i, t := range list {
		at := path.Index(i)
		if t.Key != "" {
			all = append(all, metav1validation.ValidateLabelName(t.Key, at.Child("key"))...)
		} else if t.Operator != corev1.TolerationOpExists {
			all = append(all, field.Invalid(at.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\""))
		}
		if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
			all = append(all, field.Invalid(at.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set"))
		}
		if t.Operator == corev1.TolerationOpExists && t.Value != "" {
			all = append(all, field.Invalid(at.Child("operator"), t.Value, "value must be empty when `operator` is 'Exists'"))
		}
	}
	return all
}

// PodUpdate checks a change of a pod: almost all of a pod's spec is for life.
func PodUpdate(pod, old *corev1.Pod) field.ErrorList {
	all, path := field.ErrorList{}, field.NewPath("spec")
	for i := range min(len(pod.Spec.Containers), len(old.Spec.Containers)) {
		if pod.Spec.Containers[i].Image == "" {
			all = append(all, field.Required(path.Child("containers").Index(i).Child("image"), ""))
		}
	}
	if len(pod.Spec.Containers) != len(old.Spec.Containers) {
		return append(all, field.Forbidden(path.Child("containers"), "pod updates may not add or remove containers"))
	}
	if s, was := pod.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds; was != nil && (s == nil || *s > *was) {
		all = append(all, field.Invalid(path.Child("activeDeadlineSeconds"), s, "must be less than or equal to previous value"))
	}
	all = append(all, addedTolerations(pod.Spec.Tolerations, old.Spec.Tolerations, path.Child("tolerations"))...)
	was, now := fixed(old, pod), pod.Spec.DeepCopy()
	if !equal(*was, *now) {
		all = append(all, field.Forbidden(path, "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n changed: "+
			strings.Join(changed("spec", reflect.ValueOf(*was), reflect.ValueOf(*now)), ", ")))
	}
	return all
}

// EphemeralUpdate checks a change of a pod's ephemeral containers: they may be added, and neither changed nor removed.
// Source: KEP-277; API docs of PodSpec.ephemeralContainers.
func EphemeralUpdate(pod, old *corev1.Pod) (all field.ErrorList) {
	path := field.NewPath("spec", "ephemeralContainers")
	taken, targets, names := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			taken[list[i].Name], targets[list[i].Name] = true, true
		}
	}
	for i := range pod.Spec.Volumes {
		names[pod.Spec.Volumes[i].Name] = true
	}
	for i := range pod.Spec.EphemeralContainers {
		e, at := &pod.Spec.EphemeralContainers[i], path.Index(i)
		c := corev1.Container(e.EphemeralContainerCommon)
		all = append(all, container(&c, names, at)...)
		if taken[e.Name] {
			all = append(all, field.Duplicate(at.Child("name"), e.Name))
		}
		taken[e.Name] = true
		if e.TargetContainerName != "" && !targets[e.TargetContainerName] {
			all = append(all, field.NotFound(at.Child("targetContainerName"), e.TargetContainerName))
		}
		for what, set := range map[string]bool{
			"ports": len(e.Ports) > 0, "livenessProbe": e.LivenessProbe != nil, "readinessProbe": e.ReadinessProbe != nil, "startupProbe": e.StartupProbe != nil,
			"lifecycle": e.Lifecycle != nil, "resources": len(e.Resources.Limits)+len(e.Resources.Requests) > 0, "resizePolicy": len(e.ResizePolicy) > 0,
		} {
			if set {
				all = append(all, field.Forbidden(at.Child(what), "cannot be set for an Ephemeral Container"))
			}
		}
		for j := range e.VolumeMounts {
			if m := &e.VolumeMounts[j]; m.SubPath != "" || m.SubPathExpr != "" {
				all = append(all, field.Forbidden(at.Child("volumeMounts").Index(j).Child("subPath"), "cannot be set for an Ephemeral Container"))
			}
		}
	}
	for i := range old.Spec.EphemeralContainers {
		was, kept := &old.Spec.EphemeralContainers[i], false
		for j := range pod.Spec.EphemeralContainers {
			kept = kept || equal(*was, pod.Spec.EphemeralContainers[j])
		}
		if !kept {
			all = append(all, field.Forbidden(path, "existing ephemeral containers \""+was.Name+"\" may not be removed or changed\n"))
		}
	}
	return all
}

// fixed is old's spec with the fields that may change as pod has them.
func fixed(old, pod *corev1.Pod) *corev1.PodSpec {
	spec := old.Spec.DeepCopy()
	for i := range spec.Containers {
		spec.Containers[i].Image = pod.Spec.Containers[i].Image
	}
	for i := range min(len(spec.InitContainers), len(pod.Spec.InitContainers)) {
		spec.InitContainers[i].Image = pod.Spec.InitContainers[i].Image
	}
	spec.ActiveDeadlineSeconds = pod.Spec.ActiveDeadlineSeconds
	spec.Tolerations = pod.Spec.Tolerations
	return spec
}

func addedTolerations(now, was []corev1.Toleration, path *field.Path) field.ErrorList {
	for _, w := range was {
		kept := false
		for _, n := range now {
			n.TolerationSeconds, w.TolerationSeconds = nil, nil
			kept = kept || equal(n, w)
		}
		if !kept {
			return field.ErrorList{field.Forbidden(path, "existing toleration can not be modified except its tolerationSeconds")}
		}
	}
	return nil
}

// changed names the fields in which two values of one type differ, by their names in JSON.
func changed(path string, a, b reflect.Value) []string {
	if equal(a.Interface(), b.Interface()) {
		return nil
	}
	switch {
	case a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil():
		return changed(path, a.Elem(), b.Elem())
	case a.Kind() == reflect.Struct && !strings.HasSuffix(a.Type().String(), "Quantity"):
		var out []string
		for i := range a.NumField() {
			f := a.Type().Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			at := path
			if name != "" {
				at += "." + name
			}
			if f.IsExported() {
				out = append(out, changed(at, a.Field(i), b.Field(i))...)
			}
		}
		return out
	case a.Kind() == reflect.Slice && a.Len() == b.Len():
		var out []string
		for i := range a.Len() {
			out = append(out, changed(fmt.Sprintf("%s[%d]", path, i), a.Index(i), b.Index(i))...)
		}
		return out
	}
	return []string{path}
}

// volumes checks the pod's volumes and returns their names.
func volumes(list []corev1.Volume, path *field.Path) (all field.ErrorList, names map[string]bool) {
	names = map[string]bool{}
	for i := range list {
		v, at := &list[i], path.Index(i)
		if v.Name == "" {
			all = append(all, field.Required(at.Child("name"), ""))
		} else {
			all = append(all, msgs(at.Child("name"), v.Name, validation.IsDNS1123Label(v.Name))...)
		}
		if names[v.Name] {
			all = append(all, field.Duplicate(at.Child("name"), v.Name))
		}
		names[v.Name] = true
		all = append(all, volume(v, at)...)
	}
	return all, names
}

func volume(v *corev1.Volume, path *field.Path) (all field.ErrorList) {
	kinds := 0
	for source, i := reflect.ValueOf(v.VolumeSource), 0; i < source.NumField(); i++ {
		if !source.Field(i).IsNil() {
			if kinds++; kinds == 2 {
				name, _, _ := strings.Cut(source.Type().Field(i).Tag.Get("json"), ",")
				all = append(all, field.Forbidden(path.Child(name), "may not specify more than 1 volume type"))
			}
		}
	}
	if kinds == 0 {
		all = append(all, field.Required(path, "must specify a volume type"))
	}
	if h := v.HostPath; h != nil {
		if h.Path == "" {
			all = append(all, field.Required(path.Child("hostPath", "path"), ""))
		}
		all = append(all, noBacksteps(h.Path, path.Child("hostPath", "path"))...)
	}
	if s := v.EmptyDir; s != nil && s.SizeLimit != nil && s.SizeLimit.Sign() < 0 {
		all = append(all, field.Forbidden(path.Child("emptyDir", "sizeLimit"), "SizeLimit field must be a valid resource quantity"))
	}
	if s := v.Secret; s != nil {
		if s.SecretName == "" {
			all = append(all, field.Required(path.Child("secret", "secretName"), ""))
		}
		all = append(all, keyPaths(s.Items, path.Child("secret", "items"))...)
		all = append(all, mode(s.DefaultMode, path.Child("secret", "defaultMode"))...)
	}
	if c := v.ConfigMap; c != nil {
		if c.Name == "" {
			all = append(all, field.Required(path.Child("configMap", "name"), ""))
		}
		all = append(all, keyPaths(c.Items, path.Child("configMap", "items"))...)
		all = append(all, mode(c.DefaultMode, path.Child("configMap", "defaultMode"))...)
	}
	if d := v.DownwardAPI; d != nil {
		all = append(all, mode(d.DefaultMode, path.Child("downwardAPI", "defaultMode"))...)
	}
	if p := v.Projected; p != nil {
		all = append(all, mode(p.DefaultMode, path.Child("projected", "defaultMode"))...)
		for i, s := range p.Sources {
			at := path.Child("projected", "sources").Index(i)
			if s.Secret != nil && s.Secret.Name == "" {
				all = append(all, field.Required(at.Child("secret", "name"), ""))
			}
			if s.ConfigMap != nil && s.ConfigMap.Name == "" {
				all = append(all, field.Required(at.Child("configMap", "name"), ""))
			}
		}
	}
	return all
}

func keyPaths(items []corev1.KeyToPath, path *field.Path) (all field.ErrorList) {
	for i, item := range items {
		if item.Key == "" {
			all = append(all, field.Required(path.Index(i).Child("key"), ""))
		}
		if item.Path == "" {
			all = append(all, field.Required(path.Index(i).Child("path"), ""))
		}
		all = append(all, localPath(item.Path, path.Index(i).Child("path"))...)
		all = append(all, mode(item.Mode, path.Index(i).Child("mode"))...)
	}
	return all
}

func mode(m *int32, path *field.Path) field.ErrorList {
	if m != nil && (*m < 0 || *m > 0o777) {
		return field.ErrorList{field.Invalid(path, *m, "must be a number between 0 and 0777 (octal), both inclusive")}
	}
	return nil
}

func localPath(p string, path *field.Path) field.ErrorList {
	if strings.HasPrefix(p, "/") {
		return field.ErrorList{field.Invalid(path, p, "must be a relative path")}
	}
	return noBacksteps(p, path)
}

func noBacksteps(p string, path *field.Path) field.ErrorList {
	for _, part := range strings.Split(p, "/") {
		if part == ".." {
			return field.ErrorList{field.Invalid(path, p, "must not contain '..'")}
		}
	}
	return nil
}
