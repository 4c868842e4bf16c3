package cgroup

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Device is one rule about device nodes. Rules are read in order and the last that matches decides.
type Device struct {
	Allow        bool
	Type         string // a (all), c, b
	Major, Minor int64  // -1: any
	Access       string // of r, w, m; empty: all
}

func (d Device) v1() string {
	number := func(n int64) string {
		if n < 0 {
			return "*"
		}
		return strconv.FormatInt(n, 10)
	}
	access := d.Access
	if access == "" {
		access = "rwm"
	}
	kind := d.Type
	if kind == "" || kind == "a" {
		return "a"
	}
	return kind + " " + number(d.Major) + ":" + number(d.Minor) + " " + access
}

// On v2 a small BPF program answers each access. Source: linux/bpf.h, struct bpf_cgroup_dev_ctx: access_type holds the
// kind of device in its low and the access in its high 16 bits, then major and minor follow.
const (
	devBlock, devChar                  = 1, 2
	accMknod, accRead, accWrite        = 1, 2, 4
	accAll                             = accMknod | accRead | accWrite
	progCgroupDevice                   = 15
	attachCgroupDevice                 = 6
	allowMulti                         = 2
	cmdLoad, cmdAttach, cmdDetach      = 5, 8, 9
	cmdFdByID, cmdQuery                = 13, 16
	opLoadW, opMove, opMoveImm         = 0x61, 0xbf, 0xb7
	opAndImm, opShiftRightImm          = 0x57, 0x77
	opJumpNotImm, opJumpNot, opJumpAny = 0x55, 0x5d, 0x45
	opJump, opExit                     = 0x05, 0x95
)

type insn struct {
	op       byte
	dst, src byte
	off      int16
	imm      int32
}

// program compiles rules, the last one first; no match denies.
func program(rules []Device) ([]insn, error) {
	out := []insn{
		{op: opLoadW, dst: 2, src: 1}, {op: opAndImm, dst: 2, imm: 0xffff}, // r2: kind
		{op: opLoadW, dst: 3, src: 1}, {op: opShiftRightImm, dst: 3, imm: 16}, // r3: access
		{op: opLoadW, dst: 4, src: 1, off: 4}, // r4: major
		{op: opLoadW, dst: 5, src: 1, off: 8}, // r5: minor
	}
	for i := len(rules) - 1; i >= 0; i-- {
		block, err := rule(rules[i])
		if err != nil {
			return nil, err
		}
		out = append(out, block...)
		if len(block) == 2 { // it matches everything; the verifier refuses what cannot be reached
			return out, nil
		}
	}
	return append(out, insn{op: opMoveImm, dst: 0}, insn{op: opExit}), nil
}

func rule(d Device) ([]insn, error) {
	access := int32(0)
	for _, c := range d.Access {
		bit, ok := map[rune]int32{'r': accRead, 'w': accWrite, 'm': accMknod}[c]
		if !ok {
			return nil, fault.New(fault.Invalid, "device access %q: only r, w and m", d.Access)
		}
		access |= bit
	}
	if access == 0 {
		access = accAll
	}
	var tests []insn // each is a jump past the block when the rule does not match
	switch d.Type {
	case "", "a":
	case "c":
		tests = append(tests, insn{op: opJumpNotImm, dst: 2, imm: devChar})
	case "b":
		tests = append(tests, insn{op: opJumpNotImm, dst: 2, imm: devBlock})
	default:
		return nil, fault.New(fault.Invalid, "device type %q: only a, b and c", d.Type)
	}
	if access != accAll && d.Allow { // allowed is what asks for nothing else
		tests = append(tests, insn{op: opMove, dst: 1, src: 3}, insn{op: opAndImm, dst: 1, imm: access}, insn{op: opJumpNot, dst: 1, src: 3})
	}
	if access != accAll && !d.Allow { // denied is what asks for any of it: jump over the jump that skips the block
		tests = append(tests, insn{op: opJumpAny, dst: 3, imm: access, off: 1}, insn{op: opJump})
	}
	if d.Major >= 0 && d.Type != "a" && d.Type != "" {
		tests = append(tests, insn{op: opJumpNotImm, dst: 4, imm: int32(d.Major)})
	}
	if d.Minor >= 0 && d.Type != "a" && d.Type != "" {
		tests = append(tests, insn{op: opJumpNotImm, dst: 5, imm: int32(d.Minor)})
	}
	verdict := int32(0)
	if d.Allow {
		verdict = 1
	}
	block := append(tests, insn{op: opMoveImm, dst: 0, imm: verdict}, insn{op: opExit})
	for i := range tests {
		switch block[i].op {
		case opJumpNotImm, opJumpNot, opJump:
			block[i].off = int16(len(block) - i - 1)
		}
	}
	return block, nil
}

func encode(prog []insn) []byte {
	var out []byte
	for _, i := range prog {
		out = append(out, i.op, i.dst|i.src<<4)
		out = binary.NativeEndian.AppendUint16(out, uint16(i.off))
		out = binary.NativeEndian.AppendUint32(out, uint32(i.imm))
	}
	return out
}

func bpf(cmd int, attr []byte) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(unsafe.Pointer(&attr[0])), uintptr(len(attr)))
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

func put32(b []byte, at int, v uint32) { binary.NativeEndian.PutUint32(b[at:], v) }
func put64(b []byte, at int, v uint64) { binary.NativeEndian.PutUint64(b[at:], v) }

// attachDevices puts a program for rules on the group dir, then takes off those that were there. In between both rule.
func attachDevices(dir string, rules []Device) error {
	prog, err := program(rules)
	if err != nil {
		return err
	}
	code, license := encode(prog), []byte("Apache-2.0\x00")
	load := make([]byte, 48)
	put32(load, 0, progCgroupDevice)
	put32(load, 4, uint32(len(prog)))
	put64(load, 8, uint64(uintptr(unsafe.Pointer(&code[0]))))
	put64(load, 16, uint64(uintptr(unsafe.Pointer(&license[0]))))
	fd, err := bpf(cmdLoad, load)
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if err != nil {
		return fault.As(kindOf(err), fmt.Errorf("load the device program (%d rules): %w", len(rules), err))
	}
	defer unix.Close(fd)
	group, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fault.As(kindOf(err), fmt.Errorf("open %s: %w", dir, err))
	}
	defer unix.Close(group)
	old := attached(group)
	attr := make([]byte, 20)
	put32(attr, 0, uint32(group))
	put32(attr, 4, uint32(fd))
	put32(attr, 8, attachCgroupDevice)
	put32(attr, 12, allowMulti)
	if _, err := bpf(cmdAttach, attr); err != nil {
		return fault.As(kindOf(err), fmt.Errorf("attach the device program to %s: %w", dir, err))
	}
	for _, id := range old {
		if err := detach(group, id); err != nil {
			return fmt.Errorf("take the old device program off %s: %w", dir, err)
		}
	}
	return nil
}

// attached lists the ids of the device programs on a group.
func attached(group int) []uint32 {
	var ids [64]uint32
	attr := make([]byte, 32)
	put32(attr, 0, uint32(group))
	put32(attr, 4, attachCgroupDevice)
	put64(attr, 16, uint64(uintptr(unsafe.Pointer(&ids[0]))))
	put32(attr, 24, uint32(len(ids)))
	if _, err := bpf(cmdQuery, attr); err != nil {
		return nil
	}
	n := binary.NativeEndian.Uint32(attr[24:])
	return append([]uint32(nil), ids[:min(int(n), len(ids))]...)
}

func detach(group int, id uint32) error {
	attr := make([]byte, 12)
	put32(attr, 0, id)
	fd, err := bpf(cmdFdByID, attr)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attr = make([]byte, 20)
	put32(attr, 0, uint32(group))
	put32(attr, 4, uint32(fd))
	put32(attr, 8, attachCgroupDevice)
	_, err = bpf(cmdDetach, attr)
	return err
}
