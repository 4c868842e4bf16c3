// Package fault gives errors a kind, so that callers branch on what happened and never on text.
// It does not print, log or translate: each room's api package turns kinds into gRPC or HTTP codes.
package fault

import (
	"errors"
	"fmt"
)

// Kind says what a caller may do about an error.
type Kind int

const (
	Unknown     Kind = iota
	NotFound         // the object does not exist; repeating will not help
	Exists           // an object of that name is there already
	Invalid          // the request is wrong; only a different request can succeed
	Busy             // the object is in use or in another operation
	Denied           // the kernel or a peer refused for lack of rights
	Exhausted        // out of space, memory, addresses or descriptors
	Temporary        // the same request may succeed later
	Unsupported      // this machine or build cannot do it
)

var names = [...]string{"unknown", "not found", "exists", "invalid", "busy", "denied", "exhausted", "temporary", "unsupported"}

func (k Kind) String() string { return names[k] }

type kinded struct {
	kind Kind
	err  error
}

func (e *kinded) Error() string { return e.err.Error() }
func (e *kinded) Unwrap() error { return e.err }

// New returns an error of kind k. The format follows fmt.Errorf, %w included.
func New(k Kind, format string, args ...any) error {
	return &kinded{k, fmt.Errorf(format, args...)}
}

// As gives err the kind k; nil stays nil.
func As(k Kind, err error) error {
	if err == nil {
		return nil
	}
	return &kinded{k, err}
}

// Of returns the outermost kind in err's chain, Unknown if there is none.
func Of(err error) Kind {
	var e *kinded
	if errors.As(err, &e) {
		return e.kind
	}
	return Unknown
}

// Is reports whether err's outermost kind is k.
func Is(err error, k Kind) bool { return err != nil && Of(err) == k }

type hinted struct {
	err  error
	hint string
}

func (e *hinted) Error() string { return e.err.Error() + " (" + e.hint + ")" }
func (e *hinted) Unwrap() error { return e.err }

// Hint adds what a person can do about err; nil stays nil.
func Hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, args...)}
}
