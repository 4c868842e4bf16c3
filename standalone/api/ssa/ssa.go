package ssa

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/merge"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// Conflict is a field that somebody else owns with another value.
type Conflict struct {
	Manager string
	Field   string
}

// Conflicts is the error of an apply that would take fields from others without force.
type Conflicts []Conflict

func (c Conflicts) Error() string {
	if len(c) == 1 {
		return fmt.Sprintf("Apply failed with 1 conflict: conflict with %q: %s", c[0].Manager, c[0].Field)
	}
	lines := make([]string, len(c))
	for i, one := range c {
		lines[i] = fmt.Sprintf("- %s (%s)", one.Field, one.Manager)
	}
	return fmt.Sprintf("Apply failed with %d conflicts:\n%s", len(c), strings.Join(lines, "\n"))
}

// fixed are fields that nobody owns.
var fixed = sync.OnceValue(func() *fieldpath.Set {
	set := fieldpath.NewSet(fieldpath.MakePathOrDie("apiVersion"), fieldpath.MakePathOrDie("kind"), fieldpath.MakePathOrDie("metadata"))
	for _, name := range []string{"name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields", "resourceVersion"} {
		set.Insert(fieldpath.MakePathOrDie("metadata", name))
	}
	return set
})

// Apply merges a configuration that manager applies into live. live and config are decoded JSON of an object whose Go
// type is t; config names only what the manager wants to own; what it owned and names no more is removed unless others
// own it too. force takes fields that others own. It returns the new object and its owners.
// Errors: Conflicts; anything else is a configuration that does not fit the type.
func Apply(t reflect.Type, live, config map[string]any, owners []metav1.ManagedFieldsEntry, apiVersion, manager string, force bool, now time.Time) (map[string]any, []metav1.ManagedFieldsEntry, error) {
	schema := typeOf(t)
	want, err := schema.FromUnstructured(config)
	if err != nil {
		return nil, nil, err
	}
	have, err := schema.FromUnstructured(live, typed.AllowDuplicates)
	if err != nil {
		return nil, nil, err
	}
	managers, times, err := decode(owners)
	if err != nil {
		return nil, nil, err
	}
	id := identify(metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationApply, APIVersion: apiVersion})
	before := managers[id]
	updater := (&merge.UpdaterBuilder{Converter: oneVersion{}, ReturnInputOnNoop: true}).BuildUpdater()
	merged, managers, err := updater.Apply(have, want, fieldpath.APIVersion(apiVersion), managers, id, force)
	if err != nil {
		return nil, nil, explain(err)
	}
	strip(managers, id)
	if after := managers[id]; before == nil || after == nil || !after.Set().Equals(before.Set()) {
		times[id] = metav1.NewTime(now.Truncate(time.Second))
	}
	entries, err := encode(managers, times)
	if err != nil {
		return nil, nil, err
	}
	out, is := merged.AsValue().Unstructured().(map[string]any)
	if !is {
		return nil, nil, errors.New("the configuration is not an object")
	}
	return out, entries, nil
}

// Update returns the owners after manager changed an object by other means than apply: what changed is its own now.
// old and obj are pointers to an object's Go type.
func Update(old, obj any, owners []metav1.ManagedFieldsEntry, apiVersion, manager string, now time.Time) ([]metav1.ManagedFieldsEntry, error) {
	schema := typeOf(reflect.TypeOf(obj).Elem())
	was, err := schema.FromStructured(old, typed.AllowDuplicates)
	if err != nil {
		return nil, err
	}
	is, err := schema.FromStructured(obj, typed.AllowDuplicates)
	if err != nil {
		return nil, err
	}
	managers, times, err := decode(owners)
	if err != nil {
		return nil, err
	}
	id := identify(metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: apiVersion})
	before := managers[id]
	updater := (&merge.UpdaterBuilder{Converter: oneVersion{}}).BuildUpdater()
	_, managers, err = updater.Update(was, is, fieldpath.APIVersion(apiVersion), managers, id)
	if err != nil {
		return nil, err
	}
	strip(managers, id)
	if after := managers[id]; after != nil && (before == nil || !after.Set().Equals(before.Set())) {
		times[id] = metav1.NewTime(now.Truncate(time.Second))
	}
	return encode(managers, times)
}

func strip(managers fieldpath.ManagedFields, id string) {
	set, has := managers[id]
	if !has {
		return
	}
	left := set.Set().Difference(fixed())
	if left.Empty() {
		delete(managers, id)
		return
	}
	managers[id] = fieldpath.NewVersionedSet(left, set.APIVersion(), set.Applied())
}

// oneVersion: every kind of this API has one version.
type oneVersion struct{}

func (oneVersion) Convert(v *typed.TypedValue, _ fieldpath.APIVersion) (*typed.TypedValue, error) {
	return v, nil
}
func (oneVersion) IsMissingVersionError(error) bool { return false }

func explain(err error) error {
	var found merge.Conflicts
	if !errors.As(err, &found) {
		return err
	}
	out := make(Conflicts, len(found))
	for i, c := range found {
		out[i] = Conflict{managerName(c.Manager), c.Path.String()}
	}
	slices.SortFunc(out, func(a, b Conflict) int {
		return strings.Compare(a.Manager+"\x00"+a.Field, b.Manager+"\x00"+b.Field)
	})
	return out
}

// identify is the key of an owner: all of an entry but its fields and time.
func identify(e metav1.ManagedFieldsEntry) string {
	return strings.Join([]string{e.Manager, string(e.Operation), e.APIVersion, e.Subresource}, "\x00")
}

func managerName(id string) string {
	name, _, _ := strings.Cut(id, "\x00")
	return name
}

func decode(entries []metav1.ManagedFieldsEntry) (fieldpath.ManagedFields, map[string]metav1.Time, error) {
	managers, times := fieldpath.ManagedFields{}, map[string]metav1.Time{}
	for _, e := range entries {
		if e.FieldsV1 == nil {
			continue
		}
		set := &fieldpath.Set{}
		if err := set.FromJSON(e.FieldsV1.GetRawReader()); err != nil {
			return nil, nil, fmt.Errorf("managed fields of %s: %w", e.Manager, err)
		}
		id := identify(e)
		managers[id] = fieldpath.NewVersionedSet(set, fieldpath.APIVersion(e.APIVersion), e.Operation == metav1.ManagedFieldsOperationApply)
		if e.Time != nil {
			times[id] = *e.Time
		}
	}
	return managers, times, nil
}

// encode writes the owners, appliers first, then by time and name, so that the same owners are the same bytes.
func encode(managers fieldpath.ManagedFields, times map[string]metav1.Time) ([]metav1.ManagedFieldsEntry, error) {
	var out []metav1.ManagedFieldsEntry
	for id, set := range managers {
		raw, err := set.Set().ToJSON()
		if err != nil {
			return nil, err
		}
		part := strings.Split(id, "\x00")
		e := metav1.ManagedFieldsEntry{
			Manager: part[0], Operation: metav1.ManagedFieldsOperationType(part[1]), APIVersion: part[2], Subresource: part[3],
			FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(string(raw)),
		}
		if at, has := times[id]; has {
			e.Time = &at
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b metav1.ManagedFieldsEntry) int {
		if a.Operation != b.Operation {
			return strings.Compare(string(a.Operation), string(b.Operation))
		}
		if !a.Time.Equal(b.Time) && a.Time != nil && b.Time != nil {
			return a.Time.Compare(b.Time.Time)
		}
		return strings.Compare(identify(a), identify(b))
	})
	return out, nil
}
