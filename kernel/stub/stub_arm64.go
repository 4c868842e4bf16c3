package stub

import "unsafe"

const machine = 183 // EM_AARCH64

// enterAt and holdAt are where the programs begin in this binary's text.
func enterAt() unsafe.Pointer
func holdAt() unsafe.Pointer
