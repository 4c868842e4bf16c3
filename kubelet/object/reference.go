package object

import v1 "k8s.io/api/core/v1"

// References lists the ConfigMaps and Secrets that a pod names, each once. Pull secrets are among them.
func References(pod *v1.Pod) []Key {
	refs := references{ns: pod.Namespace, seen: map[Key]bool{}}
	for _, s := range pod.Spec.ImagePullSecrets {
		refs.add(KindSecret, s.Name)
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			refs.environment(list[i].EnvFrom, list[i].Env)
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		refs.environment(pod.Spec.EphemeralContainers[i].EnvFrom, pod.Spec.EphemeralContainers[i].Env)
	}
	for i := range pod.Spec.Volumes {
		refs.volume(&pod.Spec.Volumes[i])
	}
	return refs.list
}

type references struct {
	ns   string
	seen map[Key]bool
	list []Key
}

func (r *references) add(kind, name string) {
	k := Key{kind, r.ns, name}
	if name != "" && !r.seen[k] {
		r.seen[k] = true
		r.list = append(r.list, k)
	}
}

func (r *references) environment(from []v1.EnvFromSource, env []v1.EnvVar) {
	for _, f := range from {
		if f.ConfigMapRef != nil {
			r.add(KindConfigMap, f.ConfigMapRef.Name)
		}
		if f.SecretRef != nil {
			r.add(KindSecret, f.SecretRef.Name)
		}
	}
	for _, e := range env {
		if e.ValueFrom == nil {
			continue
		}
		if k := e.ValueFrom.ConfigMapKeyRef; k != nil {
			r.add(KindConfigMap, k.Name)
		}
		if k := e.ValueFrom.SecretKeyRef; k != nil {
			r.add(KindSecret, k.Name)
		}
	}
}

func (r *references) volume(v *v1.Volume) {
	if v.ConfigMap != nil {
		r.add(KindConfigMap, v.ConfigMap.Name)
	}
	if v.Secret != nil {
		r.add(KindSecret, v.Secret.SecretName)
	}
	if v.Projected == nil {
		return
	}
	for _, s := range v.Projected.Sources {
		if s.ConfigMap != nil {
			r.add(KindConfigMap, s.ConfigMap.Name)
		}
		if s.Secret != nil {
			r.add(KindSecret, s.Secret.Name)
		}
	}
}
