package proxy

import (
	"errors"
	"io"
	"net"
	"strconv"
	"sync/atomic"
)

// Lengths of a body that are not a number of bytes.
const (
	lengthChunked int64 = -1
	lengthToEOF   int64 = -2
)

// sideError says at which end of a copy an error came up.
type sideError struct {
	writing bool
	err     error
}

func (e *sideError) Error() string { return e.err.Error() }
func (e *sideError) Unwrap() error { return e.err }

// transfer moves one message body.
type transfer struct {
	src    *stream
	length int64
	dst    io.Writer
	// chunked encodes what is written.
	chunked bool
	count   *atomic.Int64
	pace    func(n int)
}

// run copies the body to its end and not a byte further: what follows stays in src. The
// error is a *sideError; on the reading side io.ErrUnexpectedEOF for a body cut short and
// errChunkSyntax and its like for one that is not valid.
func (t *transfer) run() error {
	var err error
	switch t.length {
	case lengthChunked:
		err = t.runChunked()
	case lengthToEOF:
		err = t.runToEOF()
	default:
		err = t.runLength()
	}
	if err == nil && t.chunked {
		if _, werr := io.WriteString(t.dst, "0\r\n\r\n"); werr != nil {
			return &sideError{true, werr}
		}
	}
	return err
}

func (t *transfer) runLength() error {
	for left := t.length; left > 0; {
		buf, n, err := t.src.next()
		if err != nil {
			return &sideError{false, unexpected(err)}
		}
		if int64(n) > left {
			t.src.unread(buf[left:n])
			n = int(left)
		}
		left -= int64(n)
		err = t.write(buf[:n])
		copyBuffers.Put(buf)
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *transfer) runToEOF() error {
	for {
		buf, n, err := t.src.next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return &sideError{false, err}
		}
		err = t.write(buf[:n])
		copyBuffers.Put(buf)
		if err != nil {
			return err
		}
	}
}

func (t *transfer) runChunked() error {
	var d chunkDecoder
	for {
		buf, n, err := t.src.next()
		if err != nil {
			return &sideError{false, unexpected(err)}
		}
		data, rest, err := d.feed(buf[:n])
		if err != nil {
			copyBuffers.Put(buf)
			return &sideError{false, err}
		}
		t.src.unread(rest)
		if len(data) > 0 {
			err = t.write(data)
		}
		copyBuffers.Put(buf)
		if err != nil || d.done() {
			return err
		}
	}
}

func (t *transfer) write(p []byte) error {
	t.count.Add(int64(len(p)))
	var err error
	if t.chunked {
		err = writeChunk(t.dst, p)
	} else {
		_, err = t.dst.Write(p)
	}
	if err != nil {
		return &sideError{true, err}
	}
	if t.pace != nil {
		t.pace(len(p))
	}
	return nil
}

// buffersWriter writes several pieces with one system call.
type buffersWriter interface{ writeBuffers(net.Buffers) error }

func writeChunk(w io.Writer, p []byte) error {
	var head [20]byte
	h := append(strconv.AppendInt(head[:0], int64(len(p)), 16), "\r\n"...)
	if bw, ok := w.(buffersWriter); ok {
		return bw.writeBuffers(net.Buffers{h, p, crlf})
	}
	for _, b := range [][]byte{h, p, crlf} {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

var crlf = []byte("\r\n")

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
