package config

import (
	"reflect"
	"strings"
	"testing"

	upstream "k8s.io/kubelet/config/v1beta1"
)

// Our type has every field of upstream's, with the same name in files and a value of the same kind.
func TestTypeIsUpstreams(t *testing.T) {
	same(t, "", reflect.TypeFor[Configuration](), reflect.TypeFor[upstream.KubeletConfiguration]())
}

func same(t *testing.T, path string, ours, theirs reflect.Type) {
	t.Helper()
	if ours == theirs || ours.Kind() == reflect.Interface {
		return // ours takes whatever theirs takes
	}
	if ours.Kind() != theirs.Kind() {
		t.Errorf("%s is %v, upstream %v", path, ours, theirs)
		return
	}
	switch ours.Kind() {
	case reflect.Pointer, reflect.Slice:
		same(t, path, ours.Elem(), theirs.Elem())
	case reflect.Map:
		same(t, path+" key", ours.Key(), theirs.Key())
		same(t, path, ours.Elem(), theirs.Elem())
	case reflect.Struct:
		if ours.NumField() != theirs.NumField() {
			t.Errorf("%s has %d fields, upstream %d", path, ours.NumField(), theirs.NumField())
		}
		for i := range min(ours.NumField(), theirs.NumField()) {
			a, b := ours.Field(i), theirs.Field(i)
			name, _, _ := strings.Cut(a.Tag.Get("json"), ",")
			if want, _, _ := strings.Cut(b.Tag.Get("json"), ","); name != want {
				t.Errorf("%s.%s is where upstream has %s", path, name, want)
				continue
			}
			same(t, path+"."+name, a.Type, b.Type)
		}
	}
}
