package proxycmd

import "runtime/debug"

// heapFloorBytes is how much garbage may gather before the collector runs, however small
// the heap is. A proxy with few tunnels lives in 3 MB, and collected every 4 MB, 200
// tunnels, each time slowing the dozen under way: more than 1 % of all.
const heapFloorBytes = 24 << 20

// heapFloor returns memory that only raises the collector's goal: nobody touches it, so it
// is not resident. At most an eighth of a memory limit (GOMEMLIMIT) goes into it.
func heapFloor() []byte {
	return make([]byte, min(heapFloorBytes, debug.SetMemoryLimit(-1)/8))
}
