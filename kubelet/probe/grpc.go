package probe

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// checkGRPC asks the standard health service. Whatever goes wrong is a failure of the container, as with grpc_health_probe.
// Source: github.com/grpc/grpc, doc/health-checking.md.
func checkGRPC(ctx context.Context, host string, port int, service string, timeout time.Duration) outcome {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	addr := net.JoinHostPort(host, strconv.Itoa(port))
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithUserAgent(userAgent),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dial(ctx, addr, timeout) }),
		grpc.WithReadBufferSize(0), grpc.WithWriteBufferSize(0), grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return outcome{verdict: Failure, output: fmt.Sprintf("error: failed to connect service at %q: %v", addr, err)}
	}
	defer func() { _ = conn.Close() }()
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		return outcome{verdict: Failure, output: grpcFailure(err, addr, timeout)}
	}
	if resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return outcome{verdict: Failure, output: fmt.Sprintf("service unhealthy (responded with %q)", resp.GetStatus().String())}
	}
	return outcome{verdict: Success, output: "service healthy"}
}

func grpcFailure(err error, addr string, timeout time.Duration) string {
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unimplemented:
		return "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + s.Message()
	case codes.DeadlineExceeded:
		return fmt.Sprintf("timeout: health rpc did not complete within %v", timeout)
	case codes.Unavailable:
		return fmt.Sprintf("error: failed to connect service at %q: %s", addr, s.Message())
	default:
		return "error: health rpc probe failed: " + s.Message()
	}
}
