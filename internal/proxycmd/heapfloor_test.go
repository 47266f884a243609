package proxycmd

import (
	"runtime/debug"
	"testing"
)

func TestHeapFloorStaysWithinTheMemoryLimit(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	for limit, want := range map[int64]int{1 << 40: 24 << 20, 64 << 20: 8 << 20, 800: 100} {
		debug.SetMemoryLimit(limit)
		got := len(heapFloor())
		debug.SetMemoryLimit(before)
		if got != want {
			t.Errorf("limit %d: %d bytes, want %d", limit, got, want)
		}
	}
}
