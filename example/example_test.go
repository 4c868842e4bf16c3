package example

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// Users copy these files: they must be what the API accepts, and fit together.
func TestManifestsAreStrictAndFitTogether(t *testing.T) {
	pods, services := map[string]*v1.Pod{}, map[string]*v1.Service{}
	configs, secrets := map[string]*v1.ConfigMap{}, map[string]*v1.Secret{}
	files, err := filepath.Glob("manifests/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range bytes.Split(data, []byte("\n---\n")) {
			var head struct {
				Kind     string
				Metadata struct{ Name string }
			}
			if err := yaml.Unmarshal(doc, &head); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			name := head.Metadata.Name
			var into any
			switch head.Kind {
			case "Pod":
				pods[name] = &v1.Pod{}
				into = pods[name]
			case "Service":
				services[name] = &v1.Service{}
				into = services[name]
			case "ConfigMap":
				configs[name] = &v1.ConfigMap{}
				into = configs[name]
			case "Secret":
				secrets[name] = &v1.Secret{}
				into = secrets[name]
			default:
				t.Fatalf("%s: kind %q", file, head.Kind)
			}
			if err := yaml.UnmarshalStrict(doc, into); err != nil {
				t.Errorf("%s: %s %s: %v", file, head.Kind, name, err)
			}
		}
	}
	for name, s := range services {
		if !reached(s, pods) {
			t.Errorf("service %s leads to no pod with the port it names", name)
		}
	}
	for name, p := range pods {
		for _, v := range p.Spec.Volumes {
			if v.ConfigMap != nil && configs[v.ConfigMap.Name] == nil {
				t.Errorf("pod %s: ConfigMap %s is nowhere", name, v.ConfigMap.Name)
			}
		}
		for _, e := range p.Spec.Containers[0].Env {
			if e.ValueFrom == nil || e.ValueFrom.SecretKeyRef == nil {
				continue
			}
			ref := e.ValueFrom.SecretKeyRef
			if s := secrets[ref.Name]; s == nil || s.StringData[ref.Key] == "" {
				t.Errorf("pod %s: secret %s has no key %s", name, ref.Name, ref.Key)
			}
		}
		if image := p.Spec.Containers[0].Image; !strings.Contains(builds(t), " -name "+image+" ") {
			t.Errorf("pod %s: build.sh makes no image %s", name, image)
		}
	}
	if len(pods) != 4 || len(services) != 3 {
		t.Errorf("%d pods, %d services", len(pods), len(services))
	}
}

func reached(s *v1.Service, pods map[string]*v1.Pod) bool {
	for _, p := range pods {
		match := true
		for k, v := range s.Spec.Selector {
			match = match && p.Labels[k] == v
		}
		for _, port := range p.Spec.Containers[0].Ports {
			if match && port.Name == s.Spec.Ports[0].TargetPort.StrVal {
				return true
			}
		}
	}
	return false
}

func builds(t *testing.T) string {
	data, err := os.ReadFile("build.sh")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
