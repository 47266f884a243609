package limit

import "math"

// Weight maps cgroup v1 cpu.shares [2, 262144] to cgroup v2 cpu.weight
// [1, 10000]. It is the curve of current runc (opencontainers/cgroups) and crun:
// quadratic in log2(shares), so that the ends and the defaults meet, 2 -> 1,
// 1024 -> 100, 262144 -> 10000. The older linear map of
// the Kubernetes cgroup v2 KEP gave 1024 shares a weight of 39, less than the
// 100 of a cgroup that nobody configured. 0 means unset and stays 0.
func Weight(shares uint64) uint64 {
	switch {
	case shares == 0:
		return 0
	case shares <= 2:
		return 1
	case shares >= 1<<18:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}
