package process

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"
)

var (
	errStdinClosed = errors.New("stdin is closed")
	// errStdinFull: the process did not read while the request lasted.
	errStdinFull = errors.New("the process does not read its stdin")
)

// input is the write end of a process' stdin: a pipe or a terminal.
type input struct {
	tty bool

	write sync.Mutex // one writer at a time; never held together with mu for long
	mu    sync.Mutex
	file  *os.File
}

// Write sends all of p, or says how much of it was taken. It ends with ctx.
func (in *input) Write(ctx context.Context, p []byte) (int, error) {
	in.write.Lock()
	defer in.write.Unlock()
	in.mu.Lock()
	f := in.file
	in.mu.Unlock()
	if f == nil {
		return 0, errStdinClosed
	}
	if err := ctx.Err(); err != nil {
		return 0, errStdinFull
	}
	_ = f.SetWriteDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	n, err := f.Write(p)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, errStdinFull
	default: // EPIPE, or closed in the meantime
		return n, errStdinClosed
	}
}

// CloseWrite ends the input: EOF on a pipe, the end-of-file character (^D) on a
// terminal, which stays open for output.
func (in *input) CloseWrite(ctx context.Context) error {
	if in.tty {
		_, err := in.Write(ctx, []byte{4})
		return err
	}
	in.Close()
	return nil
}

// Close frees the file; a Write that is under way fails. The file of a terminal
// belongs to its pump.
func (in *input) Close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.file != nil && !in.tty {
		_ = in.file.Close()
	}
	in.file = nil
}
