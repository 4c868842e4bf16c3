// Package seccomp compiles profiles in their OCI form into BPF programs ready for seccomp(2). It loads nothing into the
// kernel and reads no file: a process that starts a workload does.
// Source: OCI runtime spec, config-linux.md, "Seccomp"; seccomp(2).
package seccomp

import (
	"encoding/binary"
	"slices"
)

// Classic BPF, as far as seccomp needs it. Source: kernel, Documentation/userspace-api/seccomp_filter.rst, linux/bpf_common.h.
const (
	loadWord  = 0x20 // A = data[k]
	jumpAll   = 0x05 // always forward by k
	jumpEqual = 0x15
	jumpGT    = 0x25
	jumpGE    = 0x35
	andWith   = 0x54 // A &= k
	returnK   = 0x06
)

// Offsets in struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// maxProgram is the kernel's BPF_MAXINSNS.
const maxProgram = 4096

// ins is struct sock_filter.
type ins struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

func ret(action uint32) []ins { return []ins{{code: returnK, k: action}} }

// span is a run of system call numbers, from start to the next span's start, that share one piece of code.
type span struct {
	start uint32
	code  []ins
}

// join merges neighbours with the same code, so that the tree has a node per change and not per call.
func join(spans []span) []span {
	out := spans[:0:0]
	for _, s := range spans {
		if n := len(out); n > 0 && slices.Equal(out[n-1].code, s.code) {
			continue
		}
		out = append(out, s)
	}
	return out
}

// tree is a binary search over spans with the call's number in A; every leaf returns. Some sixty spans of the default
// profile cost six comparisons a call and about 150 instructions, which also keeps the kernel's compiler fast at start.
func tree(spans []span) []ins {
	if len(spans) == 1 {
		return spans[0].code
	}
	mid := len(spans) / 2
	low, high := tree(spans[:mid]), tree(spans[mid:])
	var node []ins
	if len(low) <= 255 {
		node = []ins{{code: jumpGE, jt: uint8(len(low)), k: spans[mid].start}}
	} else {
		node = []ins{{code: jumpGE, jt: 0, jf: 1, k: spans[mid].start}, {code: jumpAll, k: uint32(len(low))}}
	}
	return slices.Concat(node, low, high)
}

// encode writes a program as an array of struct sock_filter in this machine's byte order.
func encode(program []ins) []byte {
	out := make([]byte, 0, 8*len(program))
	for _, i := range program {
		out = binary.NativeEndian.AppendUint16(out, i.code)
		out = append(out, i.jt, i.jf)
		out = binary.NativeEndian.AppendUint32(out, i.k)
	}
	return out
}
