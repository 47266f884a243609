// Package sandboxapi measures the sandbox API: how much POST /execute costs over a
// plain fork and exec, and how fast a process' output reaches a caller. The
// binary under test is built as it is shipped and runs in a process of its own.
//
//	go test -run '^$' -bench . ./test/perf/sandboxapi
//	SANDBOX_API_TARGETS=1 go test -run Targets -v ./test/perf/sandboxapi
package sandboxapi
