package process

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/sandbox-egress/sandbox-egress/internal/process/frame"
)

// ndjson is the media type of event streams: one JSON object per line.
const ndjson = "application/x-ndjson"

// appendOutput appends an output event. Text goes as "data"; bytes that are not
// UTF-8 (or cut a character), or mostly control characters, which take six bytes
// each in JSON, go as "data_base64", so that nothing is lost. seq is the position
// after the event.
func appendOutput(dst []byte, channel byte, data []byte, seq int64) []byte {
	dst = append(dst, `{"type":"`...)
	if channel == frame.Stderr {
		dst = append(dst, "stderr"...)
	} else {
		dst = append(dst, "stdout"...)
	}
	dst = append(dst, `","seq":`...)
	dst = strconv.AppendInt(dst, seq, 10)
	mark := len(dst)
	text := utf8.Valid(data)
	if text {
		dst = append(dst, `,"data":"`...)
		dst, text = appendEscaped(dst, data)
	}
	if !text {
		dst = append(dst[:mark], `,"data_base64":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, data)
	}
	return append(dst, "\"}\n"...)
}

const hexDigits = "0123456789abcdef"

// appendEscaped appends valid UTF-8 as the inside of a JSON string (RFC 8259
// section 7); encoding/json would copy and check the data twice more. It gives up,
// with false, when more than one byte in fifteen is a control character that grows
// sixfold: base64 (four thirds) is the shorter form then. A few bytes are text in
// any case, for who reads along.
func appendEscaped(dst, data []byte) ([]byte, bool) {
	start, i := 0, 0
	controls := max(len(data)/15, 64)
	for i < len(data) {
		if i+8 <= len(data) && plain(binary.LittleEndian.Uint64(data[i:])) {
			i += 8
			continue
		}
		for end := min(i+8, len(data)); i < end; i++ {
			c := data[i]
			if c >= 0x20 && c != '"' && c != '\\' {
				continue
			}
			dst = append(dst, data[start:i]...)
			start = i + 1
			switch c {
			case '\n':
				dst = append(dst, '\\', 'n')
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				if controls--; controls < 0 {
					return dst, false
				}
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
		}
	}
	return append(dst, data[start:]...), true
}

// plain tells whether none of the eight bytes of w needs an escape. For a byte b
// below 0x80, b-n borrows into the top bit exactly when b < n; b ^ c is 0 where b
// is c. A borrow can reach the next byte, so plain may be false for no reason, but
// is never true for none.
func plain(w uint64) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	quote, backslash := w^(ones*'"'), w^(ones*'\\')
	return ((w-ones*0x20)&^w|(quote-ones)&^quote|(backslash-ones)&^backslash)&tops == 0
}

func appendGapEvent(dst []byte, from, to int64) []byte {
	dst = append(dst, `{"type":"gap","from":`...)
	dst = strconv.AppendInt(dst, from, 10)
	dst = append(dst, `,"to":`...)
	dst = strconv.AppendInt(dst, to, 10)
	dst = append(dst, `,"lost":`...)
	dst = strconv.AppendInt(dst, to-from, 10)
	return append(dst, "}\n"...)
}

// eventWriter writes lines to a response, each within patience: a client that
// stops reading does not hold memory or a process for ever.
type eventWriter struct {
	w        http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration

	mu   sync.Mutex
	line []byte
	err  error
}

func newEventWriter(w http.ResponseWriter, patience time.Duration) *eventWriter {
	h := w.Header()
	h.Set("Content-Type", ndjson)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	return &eventWriter{w: w, control: http.NewResponseController(w), patience: patience}
}

// emit writes what build appends to a buffer. After the first error it does
// nothing but repeat it.
func (e *eventWriter) emit(build func(line []byte) []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return e.err
	}
	e.line = build(e.line[:0])
	if e.err = e.control.SetWriteDeadline(time.Now().Add(e.patience)); e.err != nil {
		return e.err
	}
	if _, e.err = e.w.Write(e.line); e.err == nil {
		e.err = e.control.Flush()
	}
	return e.err
}

// emitJSON writes v with a "type"; v must encode to an object with fields.
func (e *eventWriter) emitJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return e.emit(func(line []byte) []byte { return append(append(line, b...), '\n') })
}

// eventSink streams a process of /execute to its caller, who is thereby the one
// that sets the pace.
type eventSink struct {
	events *eventWriter
	limit  int64 // bytes per stream; 0: none
	fail   func()

	mu        sync.Mutex
	seq       int64
	sent      [3]int64 // by channel
	truncated bool
}

func (s *eventSink) Write(channel byte, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limit > 0 && s.sent[channel]+int64(len(p)) > s.limit {
		s.truncated = true
		p = p[:s.limit-s.sent[channel]]
		if len(p) == 0 {
			return nil
		}
	}
	s.sent[channel] += int64(len(p))
	s.seq += int64(len(p))
	err := s.events.emit(func(line []byte) []byte { return appendOutput(line, channel, p, s.seq) })
	if err != nil {
		s.fail()
	}
	return err
}

func (s *eventSink) Close() {}
