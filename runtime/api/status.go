package api

import (
	"context"
	"encoding/json"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *Server) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{Version: "0.1.0", RuntimeName: "worknode", RuntimeVersion: s.version, RuntimeApiVersion: "v1"}, nil
}

func (s *Server) Status(_ context.Context, r *cri.StatusRequest) (*cri.StatusResponse, error) {
	runtimeErr, networkErr := s.node.Ready()
	reply := &cri.StatusResponse{
		Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
			condition(cri.RuntimeReady, "MonitorNotReady", runtimeErr), condition(cri.NetworkReady, "NetworkPluginNotReady", networkErr),
		}},
		RuntimeHandlers: append([]*cri.RuntimeHandler{{Name: "", Features: &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true, UserNamespaces: s.node.UserNamespaces()}}},
			s.node.Handlers()...),
		Features: &cri.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	if r.GetVerbose() {
		config, err := json.Marshal(s.node.Describe())
		if err != nil {
			return nil, err
		}
		reply.Info = map[string]string{"version": s.version, "config": string(config)}
	}
	return reply, nil
}

func condition(kind, reason string, err error) *cri.RuntimeCondition {
	c := &cri.RuntimeCondition{Type: kind, Status: err == nil}
	if err != nil {
		c.Reason, c.Message = reason, err.Error()
	}
	return c
}

// RuntimeConfig tells kubelet which cgroup driver to use; its answer is binding since Kubernetes 1.34.
func (s *Server) RuntimeConfig(context.Context, *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: cri.CgroupDriver_CGROUPFS}}, nil
}

func (s *Server) UpdateRuntimeConfig(_ context.Context, r *cri.UpdateRuntimeConfigRequest) (*cri.UpdateRuntimeConfigResponse, error) {
	if cidr := strings.TrimSpace(r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()); cidr != "" {
		s.node.SetPodCIDR(cidr)
	}
	return &cri.UpdateRuntimeConfigResponse{}, nil
}
