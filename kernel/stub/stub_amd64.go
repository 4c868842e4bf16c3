package stub

import "unsafe"

const machine = 62 // EM_X86_64

// enterAt and holdAt are where the programs begin in this binary's text.
func enterAt() unsafe.Pointer
func holdAt() unsafe.Pointer
