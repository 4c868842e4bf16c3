package volume

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"

	"worknode/fault"
	"worknode/kubelet/translate"
)

// file is one file of a volume that comes from the API.
type file struct {
	data []byte
	mode os.FileMode
	uid  int
}

// payload maps paths inside a volume to files.
type payload map[string]file

const defaultMode = 0o644 // where the API server did not default it

func (v *Volumes) setUpObjects(ctx context.Context, pod *v1.Pod, vol *v1.Volume) error {
	p, err := v.gather(ctx, pod, vol)
	if err != nil {
		return err
	}
	if _, err := v.shared.add(pod.UID); err != nil {
		return err
	}
	return diskFault(write(v.path(pod.UID, vol), p, fsGroup(pod), v.cfg.Now()))
}

// gather collects what a volume should contain now.
func (v *Volumes) gather(ctx context.Context, pod *v1.Pod, vol *v1.Volume) (payload, error) {
	p := payload{}
	switch {
	case vol.ConfigMap != nil:
		s := vol.ConfigMap
		return p, v.configMap(ctx, p, pod.Namespace, s.Name, s.Items, mode(s.DefaultMode), isTrue(s.Optional))
	case vol.Secret != nil:
		s := vol.Secret
		return p, v.secret(ctx, p, pod.Namespace, s.SecretName, s.Items, mode(s.DefaultMode), isTrue(s.Optional))
	case vol.DownwardAPI != nil:
		return p, v.downward(p, pod, vol.DownwardAPI.Items, mode(vol.DownwardAPI.DefaultMode))
	}
	for i := range vol.Projected.Sources {
		if err := v.source(ctx, p, pod, &vol.Projected.Sources[i], mode(vol.Projected.DefaultMode)); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (v *Volumes) source(ctx context.Context, p payload, pod *v1.Pod, s *v1.VolumeProjection, m os.FileMode) error {
	switch {
	case s.ConfigMap != nil:
		return v.configMap(ctx, p, pod.Namespace, s.ConfigMap.Name, s.ConfigMap.Items, m, isTrue(s.ConfigMap.Optional))
	case s.Secret != nil:
		return v.secret(ctx, p, pod.Namespace, s.Secret.Name, s.Secret.Items, m, isTrue(s.Secret.Optional))
	case s.DownwardAPI != nil:
		return v.downward(p, pod, s.DownwardAPI.Items, m)
	case s.ServiceAccountToken != nil:
		return v.token(ctx, p, pod, s.ServiceAccountToken, m)
	case s.ClusterTrustBundle != nil:
		return fault.New(fault.Unsupported, "projected source clusterTrustBundle is not supported yet (path %s)", s.ClusterTrustBundle.Path)
	case s.PodCertificate != nil:
		return fault.New(fault.Unsupported, "projected source podCertificate is not supported yet")
	}
	return fault.New(fault.Invalid, "a projected source names nothing")
}

func (v *Volumes) configMap(ctx context.Context, p payload, ns, name string, items []v1.KeyToPath, m os.FileMode, optional bool) error {
	cm, err := v.cfg.Objects.ConfigMap(ctx, ns, name)
	if optional && fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, text := range cm.Data {
		data[k] = []byte(text)
	}
	for k, b := range cm.BinaryData {
		data[k] = b
	}
	return p.keys(data, items, m, optional, "config")
}

func (v *Volumes) secret(ctx context.Context, p payload, ns, name string, items []v1.KeyToPath, m os.FileMode, optional bool) error {
	s, err := v.cfg.Objects.Secret(ctx, ns, name)
	if optional && fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.keys(s.Data, items, m, optional, "secret")
}

// keys adds an object's data: all of it under its keys, or the items under their paths.
func (p payload) keys(data map[string][]byte, items []v1.KeyToPath, m os.FileMode, optional bool, word string) error {
	if items == nil {
		for k, b := range data {
			if err := p.add(k, b, m); err != nil {
				return err
			}
		}
		return nil
	}
	for _, item := range items {
		b, ok := data[item.Key]
		if !ok {
			if optional {
				continue
			}
			return fault.New(fault.NotFound, "references non-existent %s key: %s", word, item.Key)
		}
		own := m
		if item.Mode != nil {
			own = mode(item.Mode)
		}
		if err := p.add(item.Path, b, own); err != nil {
			return err
		}
	}
	return nil
}

func (v *Volumes) downward(p payload, pod *v1.Pod, items []v1.DownwardAPIVolumeFile, m os.FileMode) error {
	for i := range items {
		item := &items[i]
		var text string
		var err error
		switch {
		case item.FieldRef != nil:
			text, err = translate.Field(pod, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			text, err = translate.Resource(pod, nil, item.ResourceFieldRef, v.cfg.Node().Allocatable)
		default:
			err = fault.New(fault.Invalid, "downwardAPI item %q names no field", item.Path)
		}
		if err != nil {
			return err
		}
		own := m
		if item.Mode != nil {
			own = mode(item.Mode)
		}
		if err := p.add(item.Path, []byte(text), own); err != nil {
			return err
		}
	}
	return nil
}

// token adds a service account token. It is for its container's user alone: readable to all only where it is not known
// who that is, and to the fsGroup where there is one (write adds that).
func (v *Volumes) token(ctx context.Context, p payload, pod *v1.Pod, want *v1.ServiceAccountTokenProjection, m os.FileMode) error {
	text, err := v.cfg.Objects.Token(ctx, pod, want)
	if err != nil {
		return err
	}
	uid, one := oneUser(pod)
	if fsGroup(pod) >= 0 {
		m, uid = 0o600, 0
	} else if one {
		m = 0o600
	}
	if err := p.add(want.Path, []byte(text), m); err != nil {
		return err
	}
	f := p[filepath.Clean(want.Path)]
	f.uid = uid
	p[filepath.Clean(want.Path)] = f
	return nil
}

// oneUser is the user all of the pod's containers run as, if the spec says it and it is one.
func oneUser(pod *v1.Pod) (uid int, one bool) {
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			u := translate.Effective(pod, &list[i]).RunAsUser
			if u == nil || one && int(*u) != uid {
				return 0, false
			}
			uid, one = int(*u), true
		}
	}
	return uid, one
}

func (p payload) add(path string, data []byte, m os.FileMode) error {
	clean := filepath.Clean(path)
	if !filepath.IsLocal(path) || clean == "." || strings.HasPrefix(clean, "..") {
		return fault.New(fault.Invalid, "invalid path %q: it must stay in the volume and not start with '..'", path)
	}
	p[clean] = file{data: data, mode: m}
	return nil
}

func mode(m *int32) os.FileMode {
	if m == nil {
		return defaultMode
	}
	return os.FileMode(*m) & os.ModePerm
}

func isTrue(b *bool) bool { return b != nil && *b }
