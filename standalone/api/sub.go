package api

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/standalone/store"
)

// serveSub answers subresources other than status.
func (s *Server) serveSub(w http.ResponseWriter, r *request) error {
	if r.resource == store.Nodes && r.sub == "proxy" {
		if _, err := s.find(store.Nodes, "", r.name); err != nil {
			return err
		}
		return s.forward(w, r, "/"+r.rest, r.URL.Query(), nil)
	}
	if r.resource != store.Pods || r.rest != "" {
		return noSuchPath(r.Request)
	}
	switch r.sub {
	case "log":
		return s.podLog(w, r)
	case "exec", "attach":
		return s.podStream(w, r)
	case "portforward":
		pod, err := s.pod(r)
		if err != nil {
			return err
		}
		return s.forward(w, r, "/portForward/"+pod.Namespace+"/"+pod.Name, pick(r.query, "port", "ports"), nil)
	case "binding":
		return s.binding(w, r)
	case "eviction":
		return s.eviction(w, r)
	}
	return noSuchPath(r.Request)
}

func (s *Server) pod(r *request) (*corev1.Pod, error) {
	item, err := s.find(store.Pods, r.namespace, r.name)
	if err != nil {
		return nil, err
	}
	pod := item.Object.(*corev1.Pod)
	if pod.Spec.NodeName == "" {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	return pod, nil
}

// container is the one that a request means: the named one, the one that an annotation makes the default, or the only
// or first one.
func container(pod *corev1.Pod, name string) (string, error) {
	var all, inits []string
	for _, c := range pod.Spec.Containers {
		all = append(all, c.Name)
	}
	for _, c := range pod.Spec.InitContainers {
		inits = append(inits, c.Name)
	}
	var others []string // reached by name alone
	for _, c := range pod.Spec.EphemeralContainers {
		others = append(others, c.Name)
	}
	if name != "" {
		for _, list := range [][]string{all, inits, others} {
			for _, c := range list {
				if c == name {
					return name, nil
				}
			}
		}
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
	}
	if chosen := pod.Annotations["kubectl.kubernetes.io/default-container"]; chosen != "" {
		for _, c := range all {
			if c == chosen {
				return chosen, nil
			}
		}
	}
	if len(all) == 1 {
		return all[0], nil
	}
	text := fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", pod.Name, strings.Join(all, " "))
	if len(inits) > 0 {
		text += fmt.Sprintf(" or one of the init containers: [%s]", strings.Join(inits, " "))
	}
	return "", apierrors.NewBadRequest(text)
}

// logOptions are the parameters of a log request; the kubelet knows them by the same names.
var logOptions = []string{"follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"}

func (s *Server) podLog(w http.ResponseWriter, r *request) error {
	if r.Method != http.MethodGet {
		return apierrors.NewMethodNotSupported(store.Pods.GR(), strings.ToLower(r.Method))
	}
	pod, err := s.pod(r)
	if err != nil {
		return err
	}
	name, err := container(pod, r.query.Get("container"))
	if err != nil {
		return err
	}
	for _, number := range []string{"sinceSeconds", "tailLines", "limitBytes"} {
		if text := r.query.Get(number); text != "" {
			if n, err := strconv.ParseInt(text, 10, 64); err != nil || n < 0 {
				return apierrors.NewBadRequest(fmt.Sprintf("%s: Invalid value: %q: must be a number greater than or equal to 0", number, text))
			}
		}
	}
	path := "/containerLogs/" + pod.Namespace + "/" + pod.Name + "/" + name
	return s.forward(w, r, path, pick(r.query, logOptions...), func(resp *http.Response) error {
		if resp.StatusCode < http.StatusBadRequest {
			return nil
		}
		return asStatus(resp)
	})
}

// asStatus turns the kubelet's plain-text refusal into what API clients read.
func asStatus(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	resp.Body.Close()
	if err != nil {
		return err
	}
	status := metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Message: strings.TrimSpace(string(text)), Code: int32(resp.StatusCode), Reason: metav1.StatusReasonUnknown,
	}
	switch resp.StatusCode {
	case http.StatusBadRequest:
		status.Reason = metav1.StatusReasonBadRequest
	case http.StatusNotFound:
		status.Reason = metav1.StatusReasonNotFound
	case http.StatusInternalServerError:
		status.Reason = metav1.StatusReasonInternalError
	}
	body := mustJSON(&status)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	resp.Header = http.Header{"Content-Type": {typeJSON}, "Content-Length": {strconv.Itoa(len(body))}}
	return nil
}

// podStream passes an exec or attach on. The kubelet has other names for three of the parameters.
func (s *Server) podStream(w http.ResponseWriter, r *request) error {
	pod, err := s.pod(r)
	if err != nil {
		return err
	}
	name, err := container(pod, r.query.Get("container"))
	if err != nil {
		return err
	}
	q := url.Values{}
	for ours, theirs := range map[string]string{"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"} {
		if isTrue(r.query.Get(ours)) {
			q.Set(theirs, "1")
		}
	}
	if q.Get("tty") != "" {
		q.Del("error") // a terminal has one output; the kubelet refuses both
	}
	if len(q) == 0 || len(q) == 1 && q.Get("tty") != "" {
		return apierrors.NewBadRequest("you must specify at least one of stdin, stdout, stderr")
	}
	if r.sub == "exec" {
		if len(r.query["command"]) == 0 {
			return apierrors.NewBadRequest("you must specify at least one command for the container")
		}
		q["command"] = r.query["command"]
	}
	return s.forward(w, r, "/"+r.sub+"/"+pod.Namespace+"/"+pod.Name+"/"+name, q, nil)
}

func pick(q url.Values, names ...string) url.Values {
	out := url.Values{}
	for _, n := range names {
		if v, has := q[n]; has {
			out[n] = v
		}
	}
	return out
}

// forward passes a request on to the kubelet, upgrades (SPDY, WebSocket) included: from then on it only carries bytes.
func (s *Server) forward(w http.ResponseWriter, r *request, path string, q url.Values, change func(*http.Response) error) error {
	if s.Kubelet.Transport == nil {
		return apierrors.NewServiceUnavailable("the node's kubelet is not known")
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL = &url.URL{Scheme: s.Kubelet.URL.Scheme, Host: s.Kubelet.URL.Host, Path: path, RawQuery: q.Encode()}
			p.Out.Host = s.Kubelet.URL.Host
			p.Out.Header.Del("Authorization")
		},
		Transport:      s.Kubelet.Transport,
		FlushInterval:  -1, // log lines go out as they come
		ModifyResponse: change,
		ErrorHandler: func(w http.ResponseWriter, req *http.Request, err error) {
			if req.Context().Err() != nil {
				return // the client went away
			}
			s.fail(w, req, apierrors.NewServiceUnavailable(fmt.Sprintf("kubelet at %s: %v", s.Kubelet.URL.Host, err)))
		},
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	proxy.ServeHTTP(w, r.Request)
	return nil
}

// binding puts a pod that has no node onto one.
func (s *Server) binding(w http.ResponseWriter, r *request) error {
	if r.Method != http.MethodPost {
		return apierrors.NewMethodNotSupported(store.Pods.GR(), strings.ToLower(r.Method))
	}
	b := &corev1.Binding{}
	if err := readInto(r, "v1", "Binding", b); err != nil {
		return err
	}
	item, err := s.find(r.resource, r.namespace, r.name)
	if err != nil {
		return err
	}
	pod := item.Clone().(*corev1.Pod)
	if pod.Spec.NodeName != "" {
		return apierrors.NewConflict(store.Pods.GR(), r.name, fmt.Errorf("pod %s is already assigned to node %q", r.name, pod.Spec.NodeName))
	}
	pod.Spec.NodeName, pod.Spec.SchedulingGates = b.Target.Name, nil
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodScheduled {
			c.Status, c.Reason, c.Message, c.LastTransitionTime = corev1.ConditionTrue, "", "", metav1.NewTime(s.Now())
		}
	}
	if _, err := s.Store.Put(r.resource, pod, item); err != nil {
		return stored(err, r.resource, r.name)
	}
	done := &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess, Code: http.StatusCreated}
	writeMeta(w, r.Request, http.StatusCreated, done, "v1", "Status")
	return nil
}

// eviction is a polite delete; there are no disruption budgets here to ask.
func (s *Server) eviction(w http.ResponseWriter, r *request) error {
	if r.Method != http.MethodPost {
		return apierrors.NewMethodNotSupported(store.Pods.GR(), strings.ToLower(r.Method))
	}
	body, err := readBody(r.Request)
	if err != nil {
		return err
	}
	doc, err := document(body) // policy/v1 is not linked for the one field that matters
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	o := &metav1.DeleteOptions{}
	if options, is := doc["deleteOptions"]; is {
		if _, err := decode(typeJSON, mustJSON(options), "", "DeleteOptions", o, ignore); err != nil {
			return err
		}
	}
	if _, _, err := s.Delete(r.resource, r.namespace, r.name, o); err != nil {
		return err
	}
	done := &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess, Code: http.StatusCreated}
	writeMeta(w, r.Request, http.StatusCreated, done, "v1", "Status")
	return nil
}

func readInto(r *request, apiVersion, kind string, out typed) error {
	ctype, err := contentType(r.Request)
	if err != nil {
		return err
	}
	body, err := readBody(r.Request)
	if err != nil {
		return err
	}
	_, err = decode(ctype, body, apiVersion, kind, out, ignore)
	return err
}
