package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"worknode/merge"
	"worknode/standalone/api/ssa"
	"worknode/standalone/store"
)

// patchTypes in the order in which upstream names them.
var patchTypes = []string{string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType)}

func (s *Server) patch(w http.ResponseWriter, r *request) error {
	options, how, err := r.options()
	if err != nil {
		return err
	}
	kind, err := contentType(r.Request)
	if err != nil {
		return err
	}
	body, err := readBody(r.Request)
	if err != nil {
		return err
	}
	if kind == string(types.ApplyYAMLPatchType) {
		return s.serveApply(w, r, body, options)
	}
	change, err := patcher(types.PatchType(kind), body, r.resource)
	if err != nil {
		return err
	}
	item, err := s.Update(r.resource, r.namespace, r.name, options, func(old *store.Item) (store.Object, error) {
		doc, err := document(old.JSON())
		if err != nil {
			return nil, err
		}
		if doc, err = change(doc); err != nil {
			return nil, err
		}
		obj, complaints, err := r.fromDocument(doc, body, how)
		if err != nil {
			return nil, err
		}
		warnings(w, complaints)
		if obj.GetResourceVersion() == store.FormatRV(old.RV) {
			obj.SetResourceVersion("") // not the client's wish but what was there: a race may be tried again
		}
		return obj, nil
	})
	if err != nil {
		return err
	}
	return s.writeItem(w, r, http.StatusOK, item)
}

// document decodes JSON and keeps whole numbers whole.
func document(raw []byte) (map[string]any, error) {
	var doc map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &doc); err != nil {
		return nil, err
	}
	return doc, nil
}

// patcher reads a patch; the function that it returns may be used again.
func patcher(kind types.PatchType, body []byte, r *store.Resource) (func(map[string]any) (map[string]any, error), error) {
	switch kind {
	case types.JSONPatchType:
		var steps []merge.Operation
		if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &steps); err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		return func(doc map[string]any) (map[string]any, error) {
			out, err := merge.Patch(doc, steps)
			if err != nil {
				return nil, apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", nullGR, "", err.Error(), 0, false)
			}
			patched, is := out.(map[string]any)
			if !is {
				return nil, apierrors.NewBadRequest("the patch leaves something that is not an object")
			}
			return patched, nil
		}, nil
	case types.MergePatchType, types.StrategicMergePatchType:
		if _, err := document(body); err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		return func(doc map[string]any) (map[string]any, error) {
			patch, _ := document(body) // decoded anew: merging makes it part of the object
			if kind == types.MergePatchType {
				out, _ := merge.Merge(doc, patch).(map[string]any) // a patch that is an object leaves one
				return out, nil
			}
			out, err := merge.Strategic(doc, patch, reflect.TypeOf(r.New()))
			if err != nil {
				return nil, apierrors.NewBadRequest(err.Error())
			}
			return out, nil
		}, nil
	}
	return nil, unsupportedMedia(string(kind), patchTypes...)
}

// fromDocument makes a patched document an object again.
func (r *request) fromDocument(doc map[string]any, patch []byte, how strictness) (store.Object, []string, error) {
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, nil, err
	}
	obj := r.resource.New()
	complaints, err := kjson.UnmarshalStrict(raw, obj)
	if err == nil && len(complaints) > 0 && how == strict {
		err = runtime.NewStrictDecodingError(complaints)
	}
	if err != nil {
		return nil, nil, apierrors.NewInvalid(r.resource.GVK().GroupKind(), r.name,
			field.ErrorList{field.Invalid(field.NewPath("patch"), string(patch), err.Error())})
	}
	if obj.GetName() != r.name {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), r.name))
	}
	if obj.GetNamespace() != r.namespace {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("the namespace of the object (%s) does not match the namespace on the URL (%s)", obj.GetNamespace(), r.namespace))
	}
	if how == ignore {
		return obj, nil, nil
	}
	return obj, texts(complaints), nil
}

// serveApply answers a server-side apply.
func (s *Server) serveApply(w http.ResponseWriter, r *request, body []byte, o Write) error {
	if r.query.Get("fieldManager") == "" {
		return invalidPatchOptions("fieldManager", "Required value: is required for apply patch")
	}
	force := false
	if text := r.query.Get("force"); text != "" {
		var err error
		if force, err = strconv.ParseBool(text); err != nil {
			return invalidPatchOptions("force", err.Error())
		}
	}
	raw, err := yaml.YAMLToJSON(body)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("error decoding YAML: %v", err))
	}
	config, err := document(raw)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("error decoding YAML: %v", err))
	}
	item, made, err := s.Apply(r.resource, r.namespace, r.name, config, force, o)
	if err != nil {
		return err
	}
	code := http.StatusOK
	if made {
		code = http.StatusCreated
	}
	return s.writeItem(w, r, code, item)
}

func invalidPatchOptions(name, why string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Message: fmt.Sprintf("PatchOptions.meta.k8s.io \"\" is invalid: %s: %s", name, why),
		Details: &metav1.StatusDetails{Group: "meta.k8s.io", Kind: "PatchOptions"},
	}}
}

// Apply makes an object what config says of it, and leaves alone what config does not name: server-side apply in the
// name of o.Manager. It creates the object if it is not there (made). config is decoded JSON and belongs to the server.
// Errors: those of the API; Conflict if others own a field that config sets otherwise and force is not set.
func (s *Server) Apply(r *store.Resource, namespace, name string, config map[string]any, force bool, o Write) (item *store.Item, made bool, err error) {
	if err := checkConfig(r, namespace, name, config); err != nil {
		return nil, false, err
	}
	o.applied = true
	for range updateTries {
		live := s.Store.Get(r, namespace, name)
		if live == nil {
			obj, err := s.applyTo(r, nil, config, force, o.Manager)
			if err != nil {
				return nil, false, err
			}
			item, err := s.Create(r, namespace, obj, o)
			if apierrors.IsAlreadyExists(err) {
				continue
			}
			return item, true, err
		}
		item, err := s.Update(r, namespace, name, o, func(old *store.Item) (store.Object, error) {
			return s.applyTo(r, old, config, force, o.Manager)
		})
		if apierrors.IsNotFound(err) {
			continue
		}
		return item, false, err
	}
	return nil, false, modified(r, name)
}

// checkConfig checks that a configuration is of the object that it is applied to.
func checkConfig(r *store.Resource, namespace, name string, config map[string]any) error {
	if config["apiVersion"] != r.APIVersion() || config["kind"] != r.Kind {
		return apierrors.NewBadRequest(fmt.Sprintf("apply needs apiVersion %s and kind %s, got %v and %v", r.APIVersion(), r.Kind, config["apiVersion"], config["kind"]))
	}
	meta, _ := config["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
		config["metadata"] = meta
	}
	if n, has := meta["name"]; has && n != name {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%v) does not match the name on the URL (%s)", n, name))
	}
	meta["name"] = name
	if ns, has := meta["namespace"]; has && ns != namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	if namespace != "" {
		meta["namespace"] = namespace
	}
	if meta["managedFields"] != nil {
		return apierrors.NewBadRequest("metadata.managedFields must be nil")
	}
	delete(meta, "creationTimestamp") // null in what tools print
	return nil
}

// applyTo merges config into the object's present version, nil for none.
func (s *Server) applyTo(r *store.Resource, old *store.Item, config map[string]any, force bool, manager string) (store.Object, error) {
	live, owners := map[string]any{}, []metav1.ManagedFieldsEntry(nil)
	if old != nil {
		var err error
		if live, err = document(old.JSON()); err != nil {
			return nil, err
		}
		owners = old.Object.GetManagedFields()
		if meta, is := live["metadata"].(map[string]any); is {
			delete(meta, "managedFields")
		}
	}
	t := reflect.TypeOf(r.New()).Elem()
	doc, owners, err := ssa.Apply(t, live, config, owners, r.APIVersion(), manager, force, s.Now())
	var conflicts ssa.Conflicts
	if errors.As(err, &conflicts) {
		causes := make([]metav1.StatusCause, len(conflicts))
		for i, c := range conflicts {
			causes[i] = metav1.StatusCause{Type: metav1.CauseTypeFieldManagerConflict, Message: fmt.Sprintf("conflict with %q", c.Manager), Field: c.Field}
		}
		return nil, apierrors.NewApplyConflict(causes, conflicts.Error())
	}
	if err != nil {
		meta := config["metadata"].(map[string]any) // checkConfig made it one
		return nil, apierrors.NewBadRequest(fmt.Sprintf("failed to create typed patch object (%v/%v; %s, Kind=%s): %v", meta["namespace"], meta["name"], r.APIVersion(), r.Kind, err))
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	obj := r.New()
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, obj); err != nil {
		return nil, unusable(r.APIVersion(), r.Kind, err)
	}
	obj.SetManagedFields(owners)
	// A version in the configuration is a condition; the one that was there is not.
	if meta, _ := config["metadata"].(map[string]any); old == nil || meta["resourceVersion"] == nil {
		obj.SetResourceVersion("")
	}
	return obj, nil
}

// trackUpdate keeps the owners of an object's fields when it changes by other means than apply. Objects that nobody
// ever applied have no owners, and no bytes for them.
func trackUpdate(r *store.Resource, was, obj store.Object, o Write, now time.Time) error {
	owners := was.GetManagedFields()
	if o.applied {
		return nil
	}
	if len(owners) == 0 || o.Status {
		obj.SetManagedFields(owners)
		return nil
	}
	obj.SetManagedFields(nil)
	was = was.DeepCopyObject().(store.Object) // it is the store's
	was.SetManagedFields(nil)
	owners, err := ssa.Update(was, obj, owners, r.APIVersion(), o.Manager, now)
	if err != nil {
		return err
	}
	obj.SetManagedFields(owners)
	return nil
}
