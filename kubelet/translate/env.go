package translate

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
)

// environment is what a container gets, in the order in which it was said, with the last word for each name.
type environment struct {
	names  []string
	values map[string]string
}

func (e *environment) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environment) get(name string) (string, bool) {
	v, ok := e.values[name]
	return v, ok
}

func (e *environment) cri() []*cri.KeyValue {
	out := make([]*cri.KeyValue, len(e.names))
	for i, name := range e.names {
		out[i] = &cri.KeyValue{Key: name, Value: []byte(e.values[name])}
	}
	return out
}

// environ computes a container's variables: envFrom, over it env, and behind both what names the services.
// $(NAME) in a value sees what was set before it and the services.
func environ(in *ContainerInput) (*environment, error) {
	services := serviceEnv(in)
	e := &environment{values: map[string]string{}}
	for i := range in.Container.EnvFrom {
		if err := e.from(in, &in.Container.EnvFrom[i]); err != nil {
			return nil, err
		}
	}
	lookup := func(name string) (string, bool) {
		if v, ok := e.get(name); ok {
			return v, true
		}
		v, ok := services[name]
		return v, ok
	}
	for i := range in.Container.Env {
		v := &in.Container.Env[i]
		if v.Value != "" || v.ValueFrom == nil {
			e.set(v.Name, Expand(v.Value, lookup))
			continue
		}
		value, ok, err := valueFrom(in, v.ValueFrom)
		if err != nil {
			return nil, err
		}
		if ok {
			e.set(v.Name, value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(services)) {
		if _, taken := e.values[name]; !taken {
			e.set(name, services[name])
		}
	}
	return e, nil
}

func (e *environment) from(in *ContainerInput, src *v1.EnvFromSource) error {
	data := map[string]string{}
	switch {
	case src.ConfigMapRef != nil:
		cm, err := in.Objects.ConfigMap(in.Pod.Namespace, src.ConfigMapRef.Name)
		if absent(err, src.ConfigMapRef.Optional) {
			return nil
		}
		if err != nil {
			return err
		}
		maps.Copy(data, cm.Data)
	case src.SecretRef != nil:
		secret, err := in.Objects.Secret(in.Pod.Namespace, src.SecretRef.Name)
		if absent(err, src.SecretRef.Optional) {
			return nil
		}
		if err != nil {
			return err
		}
		for k, v := range secret.Data {
			data[k] = string(v)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(data)) {
		if name := src.Prefix + k; validName(name) {
			e.set(name, data[k])
		}
	}
	return nil
}

// validName: printable ASCII without "=". Others cannot be in an environment and are left out, as the API documents.
func validName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c < ' ' || c > '~' || c == '=' {
			return false
		}
	}
	return name != ""
}

func absent(err error, optional *bool) bool {
	return fault.Is(err, fault.NotFound) && isTrue(optional)
}

// valueFrom resolves one reference; ok is false if it is optional and there is nothing.
func valueFrom(in *ContainerInput, src *v1.EnvVarSource) (value string, ok bool, err error) {
	switch {
	case src.FieldRef != nil:
		value, err = envField(in.Pod, src.FieldRef.FieldPath, in.PodIPs, in.Node)
		return value, err == nil, err
	case src.ResourceFieldRef != nil:
		value, err = Resource(in.Pod, in.Container, src.ResourceFieldRef, in.Node.Allocatable)
		return value, err == nil, err
	case src.ConfigMapKeyRef != nil:
		ref := src.ConfigMapKeyRef
		cm, err := in.Objects.ConfigMap(in.Pod.Namespace, ref.Name)
		if absent(err, ref.Optional) {
			return "", false, nil
		}
		if err != nil {
			return "", false, err
		}
		value, ok = cm.Data[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fault.New(fault.NotFound, "couldn't find key %v in ConfigMap %v/%v", ref.Key, in.Pod.Namespace, ref.Name)
		}
		return value, ok, nil
	case src.SecretKeyRef != nil:
		ref := src.SecretKeyRef
		secret, err := in.Objects.Secret(in.Pod.Namespace, ref.Name)
		if absent(err, ref.Optional) {
			return "", false, nil
		}
		if err != nil {
			return "", false, err
		}
		data, ok := secret.Data[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fault.New(fault.NotFound, "couldn't find key %v in Secret %v/%v", ref.Key, in.Pod.Namespace, ref.Name)
		}
		return string(data), ok, nil
	case src.FileKeyRef != nil:
		return "", false, fault.New(fault.Unsupported, "env from file %s in volume %s: fileKeyRef is not supported yet",
			src.FileKeyRef.Path, src.FileKeyRef.VolumeName)
	}
	return "", false, fault.New(fault.Invalid, "an env valueFrom names no source")
}

// serviceEnv names the services of the pod's namespace, and always the API server's, as Docker links once did.
// Source: Kubernetes docs, Service, environment variables.
func serviceEnv(in *ContainerInput) map[string]string {
	out := map[string]string{}
	links := in.Pod.Spec.EnableServiceLinks == nil || *in.Pod.Spec.EnableServiceLinks
	var own []*v1.Service
	for _, s := range in.Services {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone {
			continue
		}
		switch {
		case links && s.Namespace == in.Pod.Namespace:
			own = append(own, s)
		case s.Namespace == v1.NamespaceDefault && s.Name == "kubernetes":
			addService(out, s)
		}
	}
	for _, s := range own { // later, so that a service named kubernetes of the pod's own namespace wins
		addService(out, s)
	}
	return out
}

func addService(out map[string]string, s *v1.Service) {
	name := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
	for i, p := range s.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if i == 0 {
			out[name+"_SERVICE_HOST"] = s.Spec.ClusterIP
			out[name+"_SERVICE_PORT"] = port
		}
		if p.Name != "" {
			out[name+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_"))] = port
		}
		protocol := string(p.Protocol)
		if protocol == "" {
			protocol = "TCP"
		}
		url := strings.ToLower(protocol) + "://" + net.JoinHostPort(s.Spec.ClusterIP, port)
		if i == 0 {
			out[name+"_PORT"] = url
		}
		link := fmt.Sprintf("%s_PORT_%s_%s", name, port, strings.ToUpper(protocol))
		out[link] = url
		out[link+"_PROTO"] = strings.ToLower(protocol)
		out[link+"_PORT"] = port
		out[link+"_ADDR"] = s.Spec.ClusterIP
	}
}
