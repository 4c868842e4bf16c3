#include "textflag.h"

// These programs run without the Go runtime: the kernel enters them with argc at 0(SP), then argv, then the environment.
// BX holds the settings (stub.go). Nothing here may refer to a symbol, as the code is copied elsewhere.

#define SETTINGS $0x400078
#define END BYTE $'w'; BYTE $'n'; BYTE $'s'; BYTE $'t'; BYTE $'u'; BYTE $'b'; BYTE $'.'; BYTE $'\n'

TEXT ·enterText(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ SP, R12
	MOVQ SETTINGS, BX
	MOVQ $308, AX // setns(namespaces, join)
	MOVQ 0(BX), DI
	MOVQ 8(BX), SI
	SYSCALL
	TESTQ AX, AX
	JNE fail
	MOVQ $119, AX // setresgid(0, 0, 0)
	XORQ DI, DI
	XORQ SI, SI
	XORQ DX, DX
	SYSCALL
	TESTQ AX, AX
	JNE fail
	MOVQ $117, AX // setresuid(0, 0, 0)
	SYSCALL
	TESTQ AX, AX
	JNE fail
	MOVQ 16(BX), DI
	TESTQ DI, DI
	JEQ run
	MOVQ $56, AX // clone(flags, 0, 0, 0, 0)
	XORQ R10, R10
	XORQ R8, R8
	SYSCALL
	TESTQ AX, AX
	JLT fail
	JEQ run
	MOVQ $231, AX // exit_group(0)
	XORQ DI, DI
	SYSCALL
run:
	MOVQ $322, AX // execveat(program, "", argv, envp, AT_EMPTY_PATH)
	MOVQ 24(BX), DI
	LEAQ 48(BX), SI
	LEAQ 8(R12), DX
	MOVQ 0(R12), CX
	LEAQ 16(R12)(CX*8), R10
	MOVQ $0x1000, R8
	SYSCALL
fail:
	NEGQ AX
	MOVQ 40(BX), R9
	MOVQ $10, CX
	XORQ DX, DX
	DIVQ CX
	ADDQ $48, DX
	MOVB DX, 2(R9)
	XORQ DX, DX
	DIVQ CX
	ADDQ $48, DX
	MOVB DX, 1(R9)
	ADDQ $48, AX
	MOVB AX, 0(R9)
	MOVQ $1, AX // write(3, report)
	MOVQ $3, DI
	LEAQ 64(BX), SI
	MOVQ 32(BX), DX
	SYSCALL
	MOVQ $231, AX // exit_group(1)
	MOVQ $1, DI
	SYSCALL
	END

TEXT ·holdText(SB), NOSPLIT|NOFRAME, $0-0
again:
	XORQ AX, AX // read(0, settings, 1)
	XORQ DI, DI
	MOVQ SETTINGS, SI
	MOVQ $1, DX
	SYSCALL
	TESTQ AX, AX
	JGT again
	MOVQ $231, AX // exit_group(0)
	XORQ DI, DI
	SYSCALL
	END

TEXT ·enterAt(SB), NOSPLIT, $0-8
	LEAQ ·enterText(SB), AX
	MOVQ AX, ret+0(FP)
	RET

TEXT ·holdAt(SB), NOSPLIT, $0-8
	LEAQ ·holdText(SB), AX
	MOVQ AX, ret+0(FP)
	RET
