package api

import (
	"net/http"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/standalone/store"
)

// The OpenAPI document is made from the Go types when somebody asks: kubectl reads it for explain and to learn that the
// server checks fields itself. Nothing of it is kept in memory. It has no descriptions: linking those of k8s.io/api makes
// their maps at the start of every process of this binary.

type doc = map[string]any

func (s *Server) openapiIndex(w http.ResponseWriter, _ *http.Request) {
	paths := doc{}
	for _, g := range groupVersions() {
		at := strings.TrimPrefix(g.path(), "/")
		paths[at] = doc{"serverRelativeURL": "/openapi/v3/" + at + "?hash=" + s.Version + "-" + s.Build}
	}
	writeJSON(w, http.StatusOK, doc{"paths": paths})
}

func (s *Server) openapiGroup(w http.ResponseWriter, _ *http.Request, g groupVersion) {
	schemas, paths := schemas{}, doc{}
	for _, r := range store.All {
		if r.Group != g.group || r.Version != g.version {
			continue
		}
		t := reflect.TypeOf(r.New()).Elem()
		name := schemas.add(t)
		schemas[name].(doc)["x-kubernetes-group-version-kind"] = []doc{gvk(r)}
		at := g.path()
		if r.Namespaced {
			at += "/namespaces/{namespace}"
		}
		at += "/" + r.Name
		paths[at] = doc{"get": operation(r, name, "list"), "post": operation(r, name, "post")}
		paths[at+"/{name}"] = doc{
			"get": operation(r, name, "get"), "put": operation(r, name, "put"), "patch": operation(r, name, "patch"), "delete": operation(r, name, "delete"),
		}
	}
	writeJSON(w, http.StatusOK, doc{
		"openapi": "3.0.0", "info": doc{"title": "worknode", "version": s.Version}, "paths": paths, "components": doc{"schemas": map[string]any(schemas)},
	})
}

func gvk(r *store.Resource) doc {
	return doc{"group": r.Group, "version": r.Version, "kind": r.Kind}
}

// operation describes a verb; the parameters are what kubectl looks for before it leaves checks to the server.
func operation(r *store.Resource, schema, action string) doc {
	parameter := func(name string) doc {
		return doc{"name": name, "in": "query", "schema": doc{"type": "string", "uniqueItems": true}}
	}
	op := doc{
		"x-kubernetes-group-version-kind": gvk(r), "x-kubernetes-action": action,
		"responses": doc{"200": doc{"description": "OK", "content": doc{typeJSON: doc{"schema": doc{"$ref": "#/components/schemas/" + schema}}}}},
	}
	switch action {
	case "post", "put", "patch":
		op["parameters"] = []doc{parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")}
	case "delete":
		op["parameters"] = []doc{parameter("dryRun")}
	}
	return op
}

// schemas are the types of one document by name.
type schemas doc

// add describes a struct and all that it is made of, and returns its name.
func (all schemas) add(t reflect.Type) string {
	name := schemaName(t)
	if _, has := all[name]; has {
		return name
	}
	properties := doc{}
	schema := doc{"type": "object", "properties": properties}
	all[name] = schema
	var required []string
	all.fields(t, properties, &required)
	if len(required) > 0 {
		slices.Sort(required)
		schema["required"] = required
	}
	return name
}

func (all schemas) fields(t reflect.Type, properties doc, required *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() {
			continue
		}
		if f.Anonymous && (name == "" || strings.Contains(options, "inline")) {
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			all.fields(inner, properties, required)
			continue
		}
		property := all.property(f.Type)
		if s := f.Tag.Get("patchStrategy"); s != "" {
			property["x-kubernetes-patch-strategy"] = s
		}
		if k := f.Tag.Get("patchMergeKey"); k != "" {
			property["x-kubernetes-patch-merge-key"] = k
		}
		properties[name] = property
		if !strings.Contains(options, "omitempty") && !strings.Contains(options, "omitzero") && f.Type.Kind() != reflect.Struct {
			*required = append(*required, name)
		}
	}
}

func (all schemas) property(t reflect.Type) doc {
	if t.Kind() == reflect.Pointer {
		return all.property(t.Elem())
	}
	switch t {
	case reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.MicroTime]():
		return doc{"type": "string", "format": "date-time"}
	case reflect.TypeFor[metav1.FieldsV1]():
		return doc{"type": "object"}
	}
	switch t.String() {
	case "resource.Quantity":
		return doc{"type": "string"}
	case "intstr.IntOrString":
		return doc{"type": "string", "format": "int-or-string"}
	case "runtime.RawExtension":
		return doc{"type": "object"}
	}
	switch t.Kind() {
	case reflect.String:
		return doc{"type": "string"}
	case reflect.Bool:
		return doc{"type": "boolean"}
	case reflect.Int32:
		return doc{"type": "integer", "format": "int32"}
	case reflect.Int, reflect.Int64:
		return doc{"type": "integer", "format": "int64"}
	case reflect.Float64:
		return doc{"type": "number", "format": "double"}
	case reflect.Map:
		return doc{"type": "object", "additionalProperties": all.property(t.Elem())}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return doc{"type": "string", "format": "byte"}
		}
		return doc{"type": "array", "items": all.property(t.Elem())}
	case reflect.Struct:
		return doc{"allOf": []doc{{"$ref": "#/components/schemas/" + all.add(t)}}}
	}
	return doc{}
}

// schemaName is the name by which the field knows a type: k8s.io/api/core/v1.Pod is io.k8s.api.core.v1.Pod.
func schemaName(t reflect.Type) string {
	host, rest, _ := strings.Cut(t.PkgPath(), "/")
	parts := strings.Split(host, ".")
	slices.Reverse(parts)
	return strings.Join(parts, ".") + "." + strings.ReplaceAll(rest, "/", ".") + "." + t.Name()
}

// openapiV2 answers with an empty document: kubectl falls back to its own types where it still asks for this one.
func (s *Server) openapiV2(w http.ResponseWriter, req *http.Request) {
	if !strings.Contains(req.Header.Get("Accept"), "protobuf") {
		writeJSON(w, http.StatusOK, doc{"swagger": "2.0", "info": doc{"title": "worknode", "version": s.Version}, "paths": doc{}})
		return
	}
	info := appendField(appendField(nil, 1, []byte("worknode")), 2, []byte(s.Version))
	body := appendField(appendField(nil, 1, []byte("2.0")), 2, info)
	body = appendField(body, 8, nil) // paths: none
	w.Header().Set("Content-Type", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")
	_, _ = w.Write(body)
}
