package act

// pauseMachine is EM_X86_64.
const pauseMachine = 62

// pauseCode sleeps for ever. It ignores SIGCHLD, by which the kernel reaps orphans for it; as init of its namespace it
// gets no signal that it does not handle, except from outside and that is KILL. It costs one page of memory, where any
// program in Go costs three megabytes.
var pauseCode = []byte{
	0xb8, 0x0d, 0x00, 0x00, 0x00, // mov eax, 13 (rt_sigaction)
	0xbf, 0x11, 0x00, 0x00, 0x00, // mov edi, 17 (SIGCHLD)
	0x48, 0x8d, 0x35, 0x17, 0x00, 0x00, 0x00, // lea rsi, [rip+23]: the action below
	0x31, 0xd2, // xor edx, edx
	0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov r10d, 8
	0x0f, 0x05, // syscall
	0xb8, 0x22, 0x00, 0x00, 0x00, // again: mov eax, 34 (pause)
	0x0f, 0x05, // syscall
	0xeb, 0xf7, // jmp again
	0, 0, 0, 0, // align
	1, 0, 0, 0, 0, 0, 0, 0, // sa_handler SIG_IGN
	0, 0, 0, 0, 0, 0, 0, 0, // sa_flags
	0, 0, 0, 0, 0, 0, 0, 0, // sa_restorer
	0, 0, 0, 0, 0, 0, 0, 0, // sa_mask
}
