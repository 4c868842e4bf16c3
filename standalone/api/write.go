package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"worknode/defaults"
	"worknode/standalone/store"
	"worknode/validate"
)

var nullGR = schema.GroupResource{}

// Write says how a change is to be made; the zero value is a plain change.
type Write struct {
	DryRun  bool   // do everything but store
	Manager string // who makes it, for server-side apply's book-keeping
	Status  bool   // the change is of the status subresource
	Debug   bool   // the change is of the ephemeralcontainers subresource: it adds to that list and changes nothing else

	applied bool // the object comes from Apply and brings its owners
}

// options reads what post, put and patch have in common from the query.
func (r *request) options() (Write, strictness, error) {
	w := Write{Status: r.sub == "status", Debug: r.sub == debugSub, Manager: r.query.Get("fieldManager")}
	if w.Manager == "" {
		w.Manager = managerOf(r.UserAgent())
	}
	for _, d := range r.query["dryRun"] {
		if d != metav1.DryRunAll {
			return w, 0, apierrors.NewBadRequest(fmt.Sprintf("dryRun: Unsupported value: %q: supported values: \"All\"", d))
		}
		w.DryRun = true
	}
	how, err := fieldValidation(r.query.Get("fieldValidation"))
	return w, how, err
}

// managerOf is the first word of a user agent, as upstream names unnamed managers.
func managerOf(agent string) string {
	for i, c := range agent {
		if c == '/' || c == ' ' {
			return agent[:i]
		}
	}
	return agent
}

func (s *Server) post(w http.ResponseWriter, r *request) error {
	options, how, err := r.options()
	if err != nil {
		return err
	}
	obj, err := s.decodeObject(w, r, how)
	if err != nil {
		return err
	}
	item, err := s.Create(r.resource, r.namespace, obj, options)
	if err != nil {
		return err
	}
	return s.writeItem(w, r, http.StatusCreated, item)
}

// decodeObject reads the body as an object of the request's kind and passes complaints on as warnings.
func (s *Server) decodeObject(w http.ResponseWriter, r *request, how strictness) (store.Object, error) {
	kind, err := contentType(r.Request)
	if err != nil {
		return nil, err
	}
	body, err := readBody(r.Request)
	if err != nil {
		return nil, err
	}
	obj := r.resource.New()
	complaints, err := decode(kind, body, r.resource.APIVersion(), r.resource.Kind, obj, how)
	if err != nil {
		return nil, err
	}
	warnings(w, complaints)
	return obj, nil
}

// warnings sends each text as a header that kubectl prints. Source: RFC 7234 section 5.5, code 299.
func warnings(w http.ResponseWriter, list []string) {
	for _, text := range list {
		w.Header().Add("Warning", fmt.Sprintf("299 - %q", text))
	}
}

// Create stores a new object in a namespace (empty for kinds without); obj belongs to the server afterwards.
// Errors: those of the API (k8s.io/apimachinery/pkg/api/errors).
func (s *Server) Create(r *store.Resource, namespace string, obj store.Object, o Write) (*store.Item, error) {
	if err := s.born(r, namespace, obj); err != nil {
		return nil, err
	}
	if !o.applied {
		obj.SetManagedFields(nil)
	}
	return s.insert(r, obj, o)
}

// insert completes, checks and stores an object whose metadata is already a new object's.
func (s *Server) insert(r *store.Resource, obj store.Object, o Write) (*store.Item, error) {
	prepareCreate(s, obj)
	defaults.Object(obj)
	completeCreate(s, obj)
	if errs := validate.Create(obj); len(errs) > 0 {
		return nil, apierrors.NewInvalid(r.GVK().GroupKind(), obj.GetName(), errs)
	}
	unlock, err := s.allocate(obj, nil)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if o.DryRun {
		if s.Store.Get(r, obj.GetNamespace(), obj.GetName()) != nil {
			return nil, apierrors.NewAlreadyExists(r.GR(), obj.GetName())
		}
		obj.GetObjectKind().SetGroupVersionKind(r.GVK())
		return &store.Item{Resource: r, Object: obj}, nil
	}
	item, err := s.Store.Put(r, obj, nil)
	if err != nil {
		return nil, stored(err, r, obj.GetName())
	}
	s.created(item)
	return item, nil
}

// born gives a new object the metadata that only the server may set, and checks its place.
func (s *Server) born(r *store.Resource, namespace string, obj store.Object) error {
	if obj.GetResourceVersion() != "" {
		return apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	if r.Namespaced {
		switch obj.GetNamespace() {
		case "", namespace:
			obj.SetNamespace(namespace)
		default:
			return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
		}
		if err := s.placeIn(r, namespace, obj.GetName()); err != nil {
			return err
		}
	} else {
		obj.SetNamespace("")
	}
	if obj.GetName() == "" && obj.GetGenerateName() != "" {
		obj.SetName(generate(obj.GetGenerateName()))
	}
	obj.SetUID(uuid.NewUUID())
	obj.SetCreationTimestamp(metav1.NewTime(s.Now().Truncate(time.Second)))
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetSelfLink("")
	obj.SetGeneration(0)
	return nil
}

// generate appends five random characters; a base that would make too long a name is cut.
func generate(base string) string {
	const random, most = 5, 63
	if len(base) > most-random {
		base = base[:most-random]
	}
	return base + utilrand.String(random)
}

// placeIn checks that a namespace takes new objects.
func (s *Server) placeIn(r *store.Resource, namespace, name string) error {
	if namespace == "" {
		return apierrors.NewBadRequest("an empty namespace may not be set during creation")
	}
	ns := s.Store.Get(store.Namespaces, "", namespace)
	if ns == nil {
		return apierrors.NewNotFound(store.Namespaces.GR(), namespace)
	}
	if ns.Object.GetDeletionTimestamp() == nil {
		return nil
	}
	err := apierrors.NewForbidden(r.GR(), name, fmt.Errorf("unable to create new content in namespace %s because it is being terminated", namespace))
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type: corev1.NamespaceTerminatingCause, Message: fmt.Sprintf("namespace %s is being terminated", namespace), Field: "metadata.namespace",
	})
	return err
}

func (s *Server) put(w http.ResponseWriter, r *request) error {
	options, how, err := r.options()
	if err != nil {
		return err
	}
	obj, err := s.decodeObject(w, r, how)
	if err != nil {
		return err
	}
	if obj.GetName() == "" {
		obj.SetName(r.name)
	}
	if obj.GetName() != r.name {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), r.name))
	}
	if r.resource.Namespaced {
		if obj.GetNamespace() == "" {
			obj.SetNamespace(r.namespace)
		}
		if obj.GetNamespace() != r.namespace {
			return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
		}
	}
	if s.Store.Get(r.resource, r.namespace, r.name) == nil && createOnUpdate(r.resource) && obj.GetUID() == "" && obj.GetResourceVersion() == "" {
		item, err := s.Create(r.resource, r.namespace, obj, options)
		if err != nil {
			return err
		}
		return s.writeItem(w, r, http.StatusCreated, item)
	}
	item, err := s.Update(r.resource, r.namespace, r.name, options, func(old *store.Item) (store.Object, error) {
		return obj.DeepCopyObject().(store.Object), nil
	})
	if err != nil {
		return err
	}
	return s.writeItem(w, r, http.StatusOK, item)
}

// createOnUpdate: a PUT of these makes what is not there.
func createOnUpdate(r *store.Resource) bool { return r == store.Leases || r == store.Events }

// updateTries bounds how often a change that names no version is made again on top of somebody else's.
const updateTries = 20

// Update changes an object. change gets the present version and returns the whole new object, which belongs to the
// server; it may be called again if the object changes meanwhile and the new one names no resource version.
// Errors: those of the API.
func (s *Server) Update(r *store.Resource, namespace, name string, o Write, change func(old *store.Item) (store.Object, error)) (*store.Item, error) {
	for try := 1; ; try++ {
		old, err := s.find(r, namespace, name)
		if err != nil {
			return nil, err
		}
		obj, err := change(old)
		if err != nil {
			return nil, err
		}
		if rv := obj.GetResourceVersion(); rv != "" && rv != store.FormatRV(old.RV) {
			return nil, modified(r, name)
		}
		item, err := s.replace(r, old, obj, o)
		if err == nil {
			return item, nil
		}
		if !errors.Is(err, errRaced) {
			return nil, err
		}
		if try == updateTries {
			return nil, modified(r, name)
		}
	}
}

var errRaced = errors.New("the object changed meanwhile")

// replace makes obj the successor of old.
func (s *Server) replace(r *store.Resource, old *store.Item, obj store.Object, o Write) (*store.Item, error) {
	if uid := obj.GetUID(); uid != "" && uid != old.Object.GetUID() {
		return nil, precondition(r, obj.GetName(), "UID in precondition: %v, UID in object meta: %v", uid, old.Object.GetUID())
	}
	was := old.Object
	obj.SetNamespace(was.GetNamespace())
	obj.SetUID(was.GetUID())
	obj.SetCreationTimestamp(was.GetCreationTimestamp())
	obj.SetGenerateName(was.GetGenerateName())
	obj.SetSelfLink("")
	obj.SetDeletionTimestamp(was.GetDeletionTimestamp())
	obj.SetDeletionGracePeriodSeconds(was.GetDeletionGracePeriodSeconds())
	obj.SetGeneration(was.GetGeneration())
	obj.SetResourceVersion(was.GetResourceVersion())
	switch {
	case o.Status:
		prepareStatus(obj, was)
	case o.Debug:
		prepareDebug(obj, was)
	default:
		prepareUpdate(obj, was)
	}
	defaults.Object(obj)
	completeUpdate(obj, was)
	var errs field.ErrorList
	switch {
	case o.Debug:
		errs = validate.EphemeralUpdate(obj.(*corev1.Pod), was.(*corev1.Pod))
	case !o.Status:
		errs = validate.Update(obj, was)
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(r.GVK().GroupKind(), obj.GetName(), errs)
	}
	unlock, err := s.allocate(obj, was)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := trackUpdate(r, was, obj, o, s.Now()); err != nil {
		return nil, err
	}
	if o.DryRun {
		obj.GetObjectKind().SetGroupVersionKind(r.GVK())
		return &store.Item{Resource: r, Object: obj, RV: old.RV}, nil
	}
	if finished(obj) {
		return s.remove(r, old, obj)
	}
	item, err := s.Store.Put(r, obj, old)
	if err != nil {
		if apierr := stored(err, r, obj.GetName()); !apierrors.IsConflict(apierr) {
			return nil, apierr
		}
		return nil, errRaced
	}
	if isNamespace(obj) {
		s.emptied(obj.GetName()) // its last finalizer may have gone
	}
	return item, nil
}

// finished reports whether an object is only waiting to be removed: it is being deleted, its grace is over, and nobody
// holds it by a finalizer.
func finished(obj store.Object) bool {
	grace := obj.GetDeletionGracePeriodSeconds()
	return obj.GetDeletionTimestamp() != nil && (grace == nil || *grace == 0) && len(obj.GetFinalizers()) == 0 && !isNamespace(obj)
}

func isNamespace(obj store.Object) bool { _, is := obj.(*corev1.Namespace); return is }

// remove takes an object out of the store. last is its final state; nil: as it is.
func (s *Server) remove(r *store.Resource, old *store.Item, last store.Object) (*store.Item, error) {
	item, err := s.Store.Delete(r, old, last)
	if err != nil {
		if apierr := stored(err, r, old.Object.GetName()); !apierrors.IsConflict(apierr) {
			return nil, apierr
		}
		return nil, errRaced
	}
	if r.Namespaced {
		s.emptied(old.Object.GetNamespace())
	}
	return item, nil
}

func mustJSON(value any) []byte {
	b, err := json.Marshal(value)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", value, err))
	}
	return b
}

// ensureNamespace makes a namespace unless it is there.
func (s *Server) ensureNamespace(name string) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := s.Create(store.Namespaces, "", ns, Write{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	return nil
}
