// Package api is the boundary of the runtime: CRI v1 over gRPC. It checks, translates and replies, and decides nothing.
// RPCs that this build does not serve answer Unimplemented with the reason (unsupported.go).
package api

import (
	"context"
	"log/slog"
	"path"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/runtime/image"
	"worknode/runtime/state"
)

const (
	maxRequest = 16 << 20 // bytes
	maxReply   = 48 << 20 // bytes: an ExecSync may return 16 MiB of each stream; what a client takes is its own affair
)

// Node is what the loop does and knows.
type Node interface {
	RunPodSandbox(ctx context.Context, config *cri.PodSandboxConfig, handler string) (string, error)
	StopPodSandbox(ctx context.Context, id string) error
	RemovePodSandbox(ctx context.Context, id string) error
	UpdatePodSandboxResources(ctx context.Context, r *cri.UpdatePodSandboxResourcesRequest) error
	CreateContainer(ctx context.Context, sandbox string, config *cri.ContainerConfig) (string, error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, timeout time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	UpdateContainerResources(ctx context.Context, id string, r *cri.LinuxContainerResources) error
	ReopenContainerLog(ctx context.Context, id string) error
	ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (stdout, stderr []byte, code int, err error)

	Exec(*cri.ExecRequest) (*cri.ExecResponse, error)
	Attach(*cri.AttachRequest) (*cri.AttachResponse, error)
	PortForward(*cri.PortForwardRequest) (*cri.PortForwardResponse, error)

	Store() *state.Store
	Events() (<-chan *cri.ContainerEventResponse, func())
	ContainerStats(c *state.Container) *cri.ContainerStats
	SandboxStats(s *state.Sandbox) *cri.PodSandboxStats
	SandboxMetrics(s *state.Sandbox) *cri.PodSandboxMetrics
	Ready() (runtime, network error)
	UserNamespaces() bool
	Handlers() []*cri.RuntimeHandler // beside the native one
	Spec(c *state.Container) *specs.Spec
	Namespaces(s *state.Sandbox) []specs.LinuxNamespace
	Describe() map[string]any
	SetPodCIDR(cidr string)

	Called(method, code string, took time.Duration) // for metrics; method without its service

	Images() []image.Image
	Image(ref string) (image.Image, bool)
	PullImage(ctx context.Context, ref string, auth *cri.AuthConfig) (image.Image, error)
	RemoveImage(ref string) error
	ImageUsage() (layers, containers *cri.FilesystemUsage)
}

// Server answers both CRI services.
type Server struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer
	node    Node
	version string
}

// New returns a gRPC server with both services. Buffers are small: a node has few clients and each connection would
// keep 64 KiB for good.
func New(node Node, version string) *grpc.Server {
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRequest), grpc.MaxSendMsgSize(maxReply),
		grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(4<<10),
		grpc.ChainUnaryInterceptor(counted(node), unary), grpc.ChainStreamInterceptor(countedStream(node), streaming),
	)
	s := &Server{node: node, version: version}
	cri.RegisterRuntimeServiceServer(g, s)
	cri.RegisterImageServiceServer(g, s)
	return g
}

// counted and countedStream tell the node of each call that ended, with the code that the client sees.
func counted(node Node) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		begin := time.Now()
		reply, err := next(ctx, request)
		node.Called(path.Base(info.FullMethod), status.Code(err).String(), time.Since(begin))
		return reply, err
	}
}

func countedStream(node Node) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		begin := time.Now()
		err := next(srv, stream)
		node.Called(path.Base(info.FullMethod), status.Code(err).String(), time.Since(begin))
		return err
	}
}

// unary turns fault kinds into codes, logs calls at Debug, and keeps a panic within its call.
func unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (reply any, err error) {
	defer func() {
		if p := recover(); p != nil {
			slog.Error("call panicked", "call", info.FullMethod, "panic", p, "stack", stack())
			err = status.Errorf(codes.Internal, "%s: %v", info.FullMethod, p)
		}
	}()
	if slog.Default().Enabled(ctx, slog.LevelDebug) {
		start := time.Now()
		defer func() { slog.Debug("call", "call", info.FullMethod, "took", time.Since(start), "error", err) }()
	}
	reply, err = next(ctx, request)
	return reply, coded(err)
}

func streaming(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return coded(next(srv, stream))
}
