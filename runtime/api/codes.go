package api

import (
	"context"
	"errors"
	"runtime/debug"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"worknode/fault"
)

// kindCodes is the one table from fault kinds to gRPC codes.
var kindCodes = [...]codes.Code{
	fault.Unknown:     codes.Unknown,
	fault.NotFound:    codes.NotFound,
	fault.Exists:      codes.AlreadyExists,
	fault.Invalid:     codes.InvalidArgument,
	fault.Busy:        codes.FailedPrecondition,
	fault.Denied:      codes.PermissionDenied,
	fault.Exhausted:   codes.ResourceExhausted,
	fault.Temporary:   codes.Unavailable,
	fault.Unsupported: codes.Unimplemented,
}

// coded gives an error its code. A deadline shows as such whatever kind it was wrapped in: clients branch on it.
func coded(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := kindCodes[fault.Of(err)]
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	return status.Error(code, err.Error())
}

func stack() string { return string(debug.Stack()) }
