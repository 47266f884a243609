package proxy

import (
	"errors"
)

var (
	errChunkSyntax  = errors.New("the chunked coding is not valid (RFC 9112 section 7.1)")
	errTrailerSize  = errors.New("the trailer section is larger than 16 KiB")
	errChunkTooLong = errors.New("a chunk size or its extension is longer than 256 bytes")
)

const (
	maxTrailer   = 16 << 10
	maxChunkLine = 256
)

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExt
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart
	trailerLine
	trailerLF
	trailerEndLF
	chunkDone
)

// chunkDecoder takes the chunked coding off a body, block by block. It accepts exactly the
// grammar: CRLF only, hexadecimal sizes of at most 15 digits, no white space. Extensions
// and trailers are checked for form and dropped (RFC 9110 section 6.5.1 lets a proxy do so).
type chunkDecoder struct {
	state  chunkState
	left   int64
	digits int
	line   int // bytes of the current size line, or of the trailer section
}

// feed decodes p in place: data is the body within p, rest what follows the body once done.
func (d *chunkDecoder) feed(p []byte) (data, rest []byte, err error) {
	out := 0
	for i := 0; i < len(p); {
		c := p[i]
		switch d.state {
		case chunkData:
			n := int(min(d.left, int64(len(p)-i)))
			copy(p[out:], p[i:i+n])
			out += n
			i += n
			if d.left -= int64(n); d.left == 0 {
				d.state = chunkDataCR
			}
			continue
		case chunkSize:
			v, ok := unhex(c)
			switch {
			case ok && d.digits < 15:
				d.left = d.left<<4 | int64(v)
				d.digits++
			case d.digits == 0 || ok:
				return nil, nil, errChunkSyntax
			case c == ';':
				d.state = chunkExt
			case c == '\r':
				d.state = chunkSizeLF
			default:
				return nil, nil, errChunkSyntax
			}
		case chunkExt:
			switch {
			case c == '\r':
				d.state = chunkSizeLF
			case c < 0x20 && c != '\t' || c == 0x7f:
				return nil, nil, errChunkSyntax
			}
		case chunkSizeLF:
			if c != '\n' {
				return nil, nil, errChunkSyntax
			}
			d.line, d.digits = 0, 0
			d.state = chunkData
			if d.left == 0 {
				d.state = trailerStart
			}
			i++
			continue
		case chunkDataCR:
			if c != '\r' {
				return nil, nil, errChunkSyntax
			}
			d.state = chunkDataLF
			i++
			continue
		case chunkDataLF:
			if c != '\n' {
				return nil, nil, errChunkSyntax
			}
			d.state = chunkSize
			i++
			continue
		case trailerStart:
			switch {
			case c == '\r':
				d.state = trailerEndLF
			case !tokenByte[c]:
				return nil, nil, errChunkSyntax
			default:
				d.state = trailerLine
			}
		case trailerLine:
			switch {
			case c == '\r':
				d.state = trailerLF
			case c < 0x20 && c != '\t' || c == 0x7f:
				return nil, nil, errChunkSyntax
			}
		case trailerLF:
			if c != '\n' {
				return nil, nil, errChunkSyntax
			}
			d.state = trailerStart
		case trailerEndLF:
			if c != '\n' {
				return nil, nil, errChunkSyntax
			}
			d.state = chunkDone
			return p[:out], p[i+1:], nil
		case chunkDone:
			return p[:out], p[i:], nil
		}
		i++
		d.line++
		if d.state < chunkData && d.line > maxChunkLine {
			return nil, nil, errChunkTooLong
		}
		if d.state > chunkDataLF && d.line > maxTrailer {
			return nil, nil, errTrailerSize
		}
	}
	return p[:out], nil, nil
}

func (d *chunkDecoder) done() bool { return d.state == chunkDone }

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}
