// Package step marks the moments between two effects, at which a runtime may be killed. A test that walks through all of
// them proves that none leaves anything behind (test/cri, TestKilledAtEveryStep).
//
// In the product nobody sets Hook, and a mark costs the comparison of one word.
package step

// Hook is called at each mark, from whatever goroutine gets there. It is set by a test's binary before the runtime runs.
var Hook func(mark string)

// At is one such moment; mark says what has just been done, or is about to be.
func At(mark string) {
	if Hook != nil {
		Hook(mark)
	}
}
