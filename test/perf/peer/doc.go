// Package peer is the two ends of the benchmark: an origin and a load generator, each one
// thread around epoll(7), so that they cost as little as they can and the proxy between
// them is what gets measured. Bulk data is sent with sendfile(2) and dropped in the kernel
// (MSG_TRUNC), without a copy to user space on either end.
package peer
