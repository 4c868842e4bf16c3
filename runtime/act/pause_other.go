//go:build !amd64

package act

// pauseMachine and pauseCode: no code was written for this architecture yet.
const pauseMachine = 0

var pauseCode []byte
