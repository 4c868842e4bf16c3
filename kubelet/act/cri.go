package act

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/kubelet/plan"
	"worknode/kubelet/state"
)

// callTime bounds one call of the runtime, as upstream's runtimeRequestTimeout does.
const callTime = 2 * time.Minute

// Dial opens the one connection to the container runtime at a unix socket. Nothing is sent yet. A call made while the
// runtime is away waits for it within its deadline.
func Dial(socket string) (*grpc.ClientConn, error) {
	if !strings.Contains(socket, "://") {
		socket = "unix://" + socket
	}
	conn, err := grpc.NewClient(socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10),
		grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			// A runtime that was killed is back within a fraction of a second: look often.
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(16<<20)),
	)
	if err != nil {
		return nil, fmt.Errorf("container runtime %s: %w", socket, err)
	}
	return conn, nil
}

// kinds turns the runtime's answer into a fault kind.
var kinds = map[codes.Code]fault.Kind{
	codes.NotFound: fault.NotFound, codes.AlreadyExists: fault.Exists, codes.InvalidArgument: fault.Invalid,
	codes.PermissionDenied: fault.Denied, codes.Unauthenticated: fault.Denied, codes.ResourceExhausted: fault.Exhausted,
	codes.Unavailable: fault.Temporary, codes.DeadlineExceeded: fault.Temporary, codes.Canceled: fault.Temporary,
	codes.Aborted: fault.Busy, codes.FailedPrecondition: fault.Busy, codes.Unimplemented: fault.Unsupported,
}

// kindOf finds the kind of an error from the runtime or from one of our own doors.
func kindOf(err error) fault.Kind {
	if k := fault.Of(err); k != fault.Unknown {
		return k
	}
	return kinds[status.Code(err)]
}

// lost says whether err leaves open if the runtime did what it was asked.
func lost(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// text is what the peer said, without gRPC's own words around it.
func text(err error) string {
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK {
		return s.Message()
	}
	return err.Error()
}

// wrong makes a result of an error; nil is success.
func wrong(err error, reason string) plan.Result {
	if err == nil {
		return plan.Result{}
	}
	return plan.Result{Failed: state.Cause{Reason: reason, Message: text(err)}, Kind: kindOf(err)}
}

// refused makes a result of the runtime's error for a call that changes something.
func refused(err error, reason string) plan.Result {
	r := wrong(err, reason)
	r.Lost = err != nil && lost(err)
	return r
}

// Exec runs a command in a container and returns its output and exit code.
// Errors: context.DeadlineExceeded after timeout (the command is killed); others if it could not be run.
func (a *Act) Exec(ctx context.Context, id string, cmd []string, timeout time.Duration) (out []byte, exit int, err error) {
	// The runtime keeps the time; ours is only for a runtime that does not answer.
	bound := callTime
	if timeout > 0 {
		bound = timeout + 10*time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	r, err := a.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: int64((timeout + time.Second - 1) / time.Second)})
	if status.Code(err) == codes.DeadlineExceeded {
		return nil, 0, fmt.Errorf("command %q timed out: %w", strings.Join(cmd, " "), context.DeadlineExceeded)
	}
	if err != nil {
		return nil, 0, err
	}
	return append(r.Stdout, r.Stderr...), int(r.ExitCode), nil
}

// Reopen makes the runtime write a container's log to a new file at its path.
func (a *Act) Reopen(ctx context.Context, id string) error {
	_, err := a.Runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id})
	return err
}
