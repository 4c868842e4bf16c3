package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/fault"
	"worknode/standalone/store"
)

// fail answers with a Status in the shape that Kubernetes clients read.
func (s *Server) fail(w http.ResponseWriter, req *http.Request, err error) {
	var known apierrors.APIStatus
	var status metav1.Status
	if errors.As(err, &known) {
		status = known.Status()
	} else {
		slog.Error("request ended in an error that is not the client's", "method", req.Method, "path", req.URL.Path, "err", err)
		status = apierrors.NewInternalError(err).Status()
	}
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	if status.Code == 0 {
		status.Code = http.StatusInternalServerError
	}
	if status.Details != nil && status.Details.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(status.Details.RetryAfterSeconds))
	}
	writeMeta(w, req, int(status.Code), &status, "v1", "Status")
}

func unauthorized() error {
	err := apierrors.NewUnauthorized("Unauthorized")
	return err
}

// noSuchPath is the answer to a path that is nobody's.
func noSuchPath(*http.Request) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: "the server could not find the requested resource",
		Details: &metav1.StatusDetails{},
	}}
}

// expired is the 410 that tells a watcher to list again.
func expired(err error) *apierrors.StatusError {
	return apierrors.NewResourceExpired(err.Error())
}

// stored turns the store's refusals into the API's.
func stored(err error, r *store.Resource, name string) error {
	switch fault.Of(err) {
	case fault.Exists:
		return apierrors.NewAlreadyExists(r.GR(), name)
	case fault.NotFound:
		return apierrors.NewNotFound(r.GR(), name)
	case fault.Busy:
		return modified(r, name)
	}
	return err
}

func modified(r *store.Resource, name string) error {
	return apierrors.NewConflict(r.GR(), name, errors.New("the object has been modified; please apply your changes to the latest version and try again"))
}

func precondition(r *store.Resource, name, format string, args ...any) error {
	return apierrors.NewConflict(r.GR(), name, fmt.Errorf("Precondition failed: "+format, args...))
}

func writeText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write([]byte(text)) // the client is gone: nobody to tell
}

func writeJSON(w http.ResponseWriter, code int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(body)
}
