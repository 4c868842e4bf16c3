package api

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"worknode/fault"
	"worknode/runtime/image"
	"worknode/runtime/verify"
)

func (s *Server) ListImages(_ context.Context, r *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	reply := &cri.ListImagesResponse{}
	if ref := r.GetFilter().GetImage().GetImage(); ref != "" {
		if im, ok := s.node.Image(ref); ok {
			reply.Images = append(reply.Images, imageMessage(im))
		}
		return reply, nil
	}
	for _, im := range s.node.Images() {
		reply.Images = append(reply.Images, imageMessage(im))
	}
	return reply, nil
}

// ImageStatus answers an absent image with no image and no error, as CRI asks.
func (s *Server) ImageStatus(_ context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	ref := r.GetImage().GetImage()
	if ref == "" {
		return nil, fault.New(fault.Invalid, "the request names no image")
	}
	im, ok := s.node.Image(ref)
	if !ok {
		return &cri.ImageStatusResponse{}, nil
	}
	reply := &cri.ImageStatusResponse{Image: imageMessage(im)}
	if r.GetVerbose() {
		text, err := json.Marshal(map[string]any{"imageSpec": map[string]any{"config": im.Config}, "layers": im.Layers})
		if err != nil {
			return nil, err
		}
		reply.Info = map[string]string{"info": string(text)}
	}
	return reply, nil
}

func (s *Server) PullImage(ctx context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	ref := r.GetImage().GetImage()
	if ref == "" {
		return nil, fault.New(fault.Invalid, "the request names no image")
	}
	im, err := s.node.PullImage(ctx, ref, r.GetAuth())
	if errors.Is(err, verify.ErrRefused) {
		// The kubelet knows this word, and only at the beginning of an error without a code.
		// Source: cri-api pkg/errors; kubelet pkg/kubelet/images, evalCRIPullErr.
		return nil, status.Error(codes.Unknown, crierrors.ErrSignatureValidationFailed.Error()+": "+err.Error())
	}
	if err != nil {
		return nil, err
	}
	return &cri.PullImageResponse{ImageRef: im.ID}, nil
}

func (s *Server) RemoveImage(_ context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	ref := r.GetImage().GetImage()
	if ref == "" {
		return nil, fault.New(fault.Invalid, "the request names no image")
	}
	return &cri.RemoveImageResponse{}, s.node.RemoveImage(ref)
}

func (s *Server) ImageFsInfo(context.Context, *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	layers, containers := s.node.ImageUsage()
	return &cri.ImageFsInfoResponse{ImageFilesystems: []*cri.FilesystemUsage{layers}, ContainerFilesystems: []*cri.FilesystemUsage{containers}}, nil
}

func imageMessage(im image.Image) *cri.Image {
	out := &cri.Image{Id: im.ID, RepoTags: im.Tags, RepoDigests: im.Digests, Size: uint64(max(im.Size, 1)), Pinned: im.Pinned, Spec: &cri.ImageSpec{Image: im.ID}}
	user, _, _ := strings.Cut(im.Config.User, ":")
	if user == "" {
		user = "0"
	}
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &cri.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}
