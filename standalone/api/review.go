package api

import (
	"net/http"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Reviews answer "may I" and "who is". On a node of its own the answers are short: a client with a certificate of the
// node's authority may everything, others cannot even ask.
const (
	authorizationGroup  = "authorization.k8s.io"
	authenticationGroup = "authentication.k8s.io"
)

type review struct {
	group, name, kind string
	namespaced        bool
}

var reviews = []review{
	{authorizationGroup, "selfsubjectaccessreviews", "SelfSubjectAccessReview", false},
	{authorizationGroup, "selfsubjectrulesreviews", "SelfSubjectRulesReview", false},
	{authorizationGroup, "subjectaccessreviews", "SubjectAccessReview", false},
	{authorizationGroup, "localsubjectaccessreviews", "LocalSubjectAccessReview", true},
	{authenticationGroup, "selfsubjectreviews", "SelfSubjectReview", false},
	{authenticationGroup, "tokenreviews", "TokenReview", false},
}

const whyAllowed = "clients of this node's certificate authority are its administrators"

func (s *Server) serveReview(w http.ResponseWriter, r *request) error {
	var which *review
	for i := range reviews {
		if reviews[i].group == r.group && reviews[i].name == r.review && r.version == "v1" {
			which = &reviews[i]
		}
	}
	if which == nil || r.name != "" {
		return noSuchPath(r.Request)
	}
	if r.Method != http.MethodPost {
		return apierrors.NewMethodNotSupported(schema.GroupResource{Group: r.group, Resource: r.review}, strings.ToLower(r.Method))
	}
	apiVersion := which.group + "/v1"
	read := func(out typed) error { return readInto(r, apiVersion, which.kind, out) }
	var err error
	is := metav1.TypeMeta{APIVersion: apiVersion, Kind: which.kind}
	var answer message
	switch which.kind {
	case "SelfSubjectAccessReview":
		v := &authorizationv1.SelfSubjectAccessReview{}
		err = read(v)
		v.TypeMeta, v.Status = is, authorizationv1.SubjectAccessReviewStatus{Allowed: true, Reason: whyAllowed}
		answer = v
	case "SelfSubjectRulesReview":
		v := &authorizationv1.SelfSubjectRulesReview{}
		err = read(v)
		all := []string{"*"}
		v.TypeMeta, v.Status = is, authorizationv1.SubjectRulesReviewStatus{
			ResourceRules:    []authorizationv1.ResourceRule{{Verbs: all, APIGroups: all, Resources: all}},
			NonResourceRules: []authorizationv1.NonResourceRule{{Verbs: all, NonResourceURLs: all}},
		}
		answer = v
	case "SubjectAccessReview":
		v := &authorizationv1.SubjectAccessReview{}
		err = read(v)
		v.TypeMeta, v.Status = is, subjectAllowed(v.Spec)
		answer = v
	case "LocalSubjectAccessReview":
		v := &authorizationv1.LocalSubjectAccessReview{}
		err = read(v)
		v.TypeMeta, v.Status = is, subjectAllowed(v.Spec)
		answer = v
	case "SelfSubjectReview":
		v := &authenticationv1.SelfSubjectReview{}
		err = read(v)
		v.TypeMeta, v.Status.UserInfo = is, userOf(r.Request)
		answer = v
	case "TokenReview":
		v := &authenticationv1.TokenReview{}
		err = read(v)
		v.TypeMeta, v.Status = is, authenticationv1.TokenReviewStatus{Error: "this node issues no tokens, only client certificates"}
		answer = v
	}
	if err != nil {
		return err
	}
	writeMeta(w, r.Request, http.StatusCreated, answer, apiVersion, which.kind)
	return nil
}

// subjectAllowed: who asks for somebody else is told that anybody with a name may, but nobody without.
func subjectAllowed(spec authorizationv1.SubjectAccessReviewSpec) authorizationv1.SubjectAccessReviewStatus {
	if spec.User == "" || spec.User == "system:anonymous" {
		return authorizationv1.SubjectAccessReviewStatus{Reason: "a client certificate is needed"}
	}
	return authorizationv1.SubjectAccessReviewStatus{Allowed: true, Reason: whyAllowed}
}

// userOf is whom the client's certificate names.
func userOf(req *http.Request) authenticationv1.UserInfo {
	subject := req.TLS.VerifiedChains[0][0].Subject
	return authenticationv1.UserInfo{Username: subject.CommonName, Groups: append(subject.Organization, "system:authenticated")}
}
