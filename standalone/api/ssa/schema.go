// Package ssa is server-side apply: who owns which field of an object, and what an applied configuration makes of it.
// The rules are structured-merge-diff's; the schema that they need is read off the Go types by reflection when a kind is
// first applied, instead of being linked as an OpenAPI document. It is pure but for that cache.
package ssa

import (
	"reflect"
	"strings"
	"sync"

	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// schemas caches what reflection found, by the object's type.
var schemas sync.Map // reflect.Type → typed.ParseableType

// typeOf is the schema of an object's type.
func typeOf(t reflect.Type) typed.ParseableType {
	if known, ok := schemas.Load(t); ok {
		return known.(typed.ParseableType)
	}
	b := builder{seen: map[reflect.Type]bool{}}
	name := b.named(t)
	out := typed.ParseableType{Schema: &schema.Schema{Types: b.types}, TypeRef: schema.TypeRef{NamedType: &name}}
	schemas.Store(t, out)
	return out
}

type builder struct {
	types   []schema.TypeDef
	seen    map[reflect.Type]bool
	untyped bool
}

// keys are list keys that differ from the patch merge key in the tags, by type of the items; and lists that no tag marks.
// Source: listMapKey markers in k8s.io/api, v0.37.
var keys = map[string][]string{
	"v1.ContainerPort":            {"containerPort", "protocol"},
	"v1.ServicePort":              {"port", "protocol"},
	"v1.TopologySpreadConstraint": {"topologyKey", "whenUnsatisfiable"},
}

// atomic are types whose fields belong together: one owner or none. Source: structType and mapType markers in k8s.io/api.
var atomic = map[string]bool{
	"v1.LabelSelector": true, "v1.ObjectReference": true, "v1.LocalObjectReference": true, "v1.SecretReference": true,
	"v1.TypedLocalObjectReference": true, "v1.ConfigMapKeySelector": true, "v1.SecretKeySelector": true,
	"v1.ObjectFieldSelector": true, "v1.ResourceFieldSelector": true, "v1.NodeSelector": true, "v1.NodeSelectorTerm": true,
	"v1.OwnerReference": true, "v1.FileKeySelector": true,
}

// atomicFields are maps that belong together.
var atomicFields = map[string]bool{"v1.ServiceSpec.selector": true, "v1.PodSpec.nodeSelector": true}

// defaults are values of keys that users leave out. Without them two lists would not find each other's items.
var defaults = map[string]any{"v1.ContainerPort.protocol": "TCP", "v1.ServicePort.protocol": "TCP"}

func (b *builder) named(t reflect.Type) string {
	name := t.String()
	if b.seen[t] {
		return name
	}
	b.seen[t] = true
	at := len(b.types)
	b.types = append(b.types, schema.TypeDef{Name: name})
	m := &schema.Map{}
	b.fields(t, name, m)
	if atomic[name] {
		m.ElementRelationship = schema.Atomic
	}
	b.types[at].Atom = schema.Atom{Map: m}
	return name
}

func (b *builder) fields(t reflect.Type, name string, m *schema.Map) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "-" || !f.IsExported() {
			continue
		}
		if f.Anonymous && (tag == "" || strings.Contains(options, "inline")) {
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			b.fields(inner, name, m)
			continue
		}
		field := schema.StructField{Name: tag, Type: b.ref(f.Type, f.Tag), Default: defaults[name+"."+tag]}
		if atomicFields[name+"."+tag] {
			relation := schema.Atomic
			field.Type.ElementRelationship = &relation
		}
		m.Fields = append(m.Fields, field)
	}
}

func scalar(s schema.Scalar) schema.TypeRef {
	return schema.TypeRef{Inlined: schema.Atom{Scalar: &s}}
}

func (b *builder) ref(t reflect.Type, tag reflect.StructTag) schema.TypeRef {
	if t.Kind() == reflect.Pointer {
		return b.ref(t.Elem(), tag)
	}
	switch t.String() {
	case "v1.Time", "v1.MicroTime", "v1.Duration":
		return scalar(schema.String)
	case "resource.Quantity", "intstr.IntOrString":
		return scalar(schema.Untyped)
	case "v1.FieldsV1", "runtime.RawExtension":
		return b.anything()
	}
	switch t.Kind() {
	case reflect.String:
		return scalar(schema.String)
	case reflect.Bool:
		return scalar(schema.Boolean)
	case reflect.Struct:
		name := b.named(t)
		return schema.TypeRef{NamedType: &name}
	case reflect.Map:
		return schema.TypeRef{Inlined: schema.Atom{Map: &schema.Map{ElementType: b.ref(t.Elem(), "")}}}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return scalar(schema.String)
		}
		return schema.TypeRef{Inlined: schema.Atom{List: b.list(t, tag)}}
	}
	return scalar(schema.Numeric)
}

func (b *builder) list(t reflect.Type, tag reflect.StructTag) *schema.List {
	list := &schema.List{ElementType: b.ref(t.Elem(), ""), ElementRelationship: schema.Atomic}
	if !strings.Contains(tag.Get("patchStrategy"), "merge") {
		return list
	}
	list.ElementRelationship = schema.Associative
	if key := tag.Get("patchMergeKey"); key != "" {
		list.Keys = []string{key}
		if more, has := keys[t.Elem().String()]; has {
			list.Keys = more
		}
	}
	return list
}

// anything is a value of any shape, owned as a whole.
func (b *builder) anything() schema.TypeRef {
	name := "anything"
	ref := schema.TypeRef{NamedType: &name}
	if !b.untyped {
		b.untyped = true
		scalar := schema.Untyped
		b.types = append(b.types, schema.TypeDef{Name: name, Atom: schema.Atom{
			Scalar: &scalar,
			List:   &schema.List{ElementType: ref, ElementRelationship: schema.Atomic},
			Map:    &schema.Map{ElementType: ref, ElementRelationship: schema.Atomic},
		}})
	}
	return ref
}
