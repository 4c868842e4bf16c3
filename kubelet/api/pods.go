package api

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"worknode/fault"
)

func (s *Server) getPods(w http.ResponseWriter, _ *http.Request) {
	list := v1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []v1.Pod{}}
	for _, p := range s.Pods.List() {
		list.Items = append(list.Items, *p) // shallow: only read below
	}
	reply(w, list)
}

// getRunningPods lists what really runs: the pods of the runtime's containers, known to the API server or not.
func (s *Server) getRunningPods(w http.ResponseWriter, r *http.Request) {
	running := &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}
	list, err := s.Runtime.ListContainers(r.Context(), &cri.ListContainersRequest{Filter: running})
	if err != nil {
		fail(w, kindOfCRI(err))
		return
	}
	pods := map[string]*v1.Pod{}
	var order []string
	for _, c := range list.GetContainers() {
		uid := c.GetLabels()["io.kubernetes.pod.uid"]
		if uid == "" {
			continue // not of a kubelet
		}
		if pods[uid] == nil {
			pods[uid] = &v1.Pod{ObjectMeta: metav1.ObjectMeta{
				UID: types.UID(uid), Name: c.Labels["io.kubernetes.pod.name"], Namespace: c.Labels["io.kubernetes.pod.namespace"],
			}}
			order = append(order, uid)
		}
		spec := &pods[uid].Spec
		spec.Containers = append(spec.Containers, v1.Container{Name: c.GetMetadata().GetName(), Image: c.GetImage().GetImage()})
	}
	out := v1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []v1.Pod{}}
	for _, uid := range order {
		out.Items = append(out.Items, *pods[uid])
	}
	reply(w, out)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		slog.Debug("kubelet server: reply", "err", err)
	}
}

// fail answers with an error's own text and the code of its kind.
func fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	switch fault.Of(err) {
	case fault.NotFound:
		code = http.StatusNotFound
	case fault.Invalid:
		code = http.StatusBadRequest
	case fault.Denied:
		code = http.StatusForbidden
	case fault.Busy, fault.Exists:
		code = http.StatusConflict
	case fault.Exhausted, fault.Temporary:
		code = http.StatusServiceUnavailable
	case fault.Unsupported:
		code = http.StatusNotImplemented
	}
	http.Error(w, err.Error(), code)
}

// podOf finds the pod that the path names.
func (s *Server) podOf(r *http.Request) (*v1.Pod, error) {
	ns, name, uid := r.PathValue("ns"), r.PathValue("pod"), types.UID(r.PathValue("uid"))
	pod, ok := s.Pods.Get(ns, name, uid)
	if !ok {
		return nil, fault.New(fault.NotFound, "pod %s/%s is not on this node", ns, name)
	}
	return pod, nil
}

// containerOf finds the pod that the path names and checks that its container exists.
func (s *Server) containerOf(r *http.Request) (*v1.Pod, string, error) {
	pod, err := s.podOf(r)
	if err != nil {
		return nil, "", err
	}
	name := r.PathValue("container")
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return pod, name, nil
		}
	}
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return pod, name, nil
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return pod, name, nil
		}
	}
	return nil, "", fault.New(fault.NotFound, "container %s is not in pod %s", name, fmt.Sprintf("%s/%s", pod.Namespace, pod.Name))
}

// runOf finds the pod and the container that the path names, and the runtime's id of its current run.
func (s *Server) runOf(r *http.Request) (pod *v1.Pod, name, id string, err error) {
	if pod, name, err = s.containerOf(r); err != nil {
		return nil, "", "", err
	}
	id, _, err = s.Pods.ContainerID(pod, name, false)
	return pod, name, id, err
}
