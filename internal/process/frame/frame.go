// Package frame reads and writes the WebSocket messages of the Kubernetes
// remote command protocol, subprotocol v5.channel.k8s.io
// (k8s.io/apimachinery/pkg/util/remotecommand): one message is one byte of
// channel number and a payload.
package frame

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Protocol is the WebSocket subprotocol name.
const Protocol = "v5.channel.k8s.io"

// Channels. 0 to 4 and 255 are the protocol's; Marker is ours: clients of the
// protocol discard channels that they do not know.
const (
	Stdin  byte = 0
	Stdout byte = 1
	Stderr byte = 2
	Status byte = 3
	Resize byte = 4
	Marker byte = 5 // JSON, server to client: {"type":"gap","from":N,"to":M}
	Close  byte = 255
)

// Errors of Parse.
var (
	ErrEmpty   = errors.New("empty message: the first byte is the channel")
	ErrChannel = errors.New("channel is not one a client may write to (0 stdin, 4 resize, 255 close)")
	ErrPayload = errors.New("malformed payload")
)

// Size is a terminal size in character cells.
type Size struct {
	Width  uint16
	Height uint16
}

// Message is one message from a client, by channel: Data for Stdin, Size for
// Resize, nothing for Close (which always closes stdin).
type Message struct {
	Channel byte
	Data    []byte
	Size    Size
}

// Parse reads a message from a client. Data aliases b.
func Parse(b []byte) (Message, error) {
	if len(b) == 0 {
		return Message{}, ErrEmpty
	}
	m := Message{Channel: b[0]}
	switch payload := b[1:]; m.Channel {
	case Stdin:
		m.Data = payload
	case Resize:
		if err := json.Unmarshal(payload, &m.Size); err != nil {
			return Message{}, fmt.Errorf(`%w: resize wants {"Width":columns,"Height":rows}: %w`, ErrPayload, err)
		}
		if m.Size.Width == 0 || m.Size.Height == 0 {
			return Message{}, fmt.Errorf("%w: resize: Width and Height are 1 to 65535", ErrPayload)
		}
	case Close:
		if len(payload) != 1 {
			return Message{}, fmt.Errorf("%w: close wants one byte, the channel to close; got %d", ErrPayload, len(payload))
		}
		if payload[0] != Stdin {
			return Message{}, fmt.Errorf("%w: close: a client can close channel 0 (stdin) only, not %d", ErrPayload, payload[0])
		}
	default:
		return Message{}, fmt.Errorf("%w: got %d", ErrChannel, m.Channel)
	}
	return m, nil
}

// Exit is how the process ended, as the Status channel tells it.
type Exit struct {
	Code    int    // 128 + signal number when a signal ended it
	Message string // empty for code 0
}

// Kubernetes' metav1.Status, the fields that the protocol uses.
type status struct {
	Metadata struct{}       `json:"metadata"`
	Status   string         `json:"status"`
	Message  string         `json:"message,omitempty"`
	Reason   string         `json:"reason,omitempty"`
	Details  *statusDetails `json:"details,omitempty"`
}

type statusDetails struct {
	Causes []statusCause `json:"causes"`
}

type statusCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// AppendStatus appends the Status message for e, channel byte included.
func AppendStatus(dst []byte, e Exit) []byte {
	s := status{Status: "Success"}
	if e.Code != 0 {
		s = status{
			Status:  "Failure",
			Message: e.Message,
			Reason:  "NonZeroExitCode",
			Details: &statusDetails{Causes: []statusCause{{Reason: "ExitCode", Message: fmt.Sprint(e.Code)}}},
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		// Strings and structs only: Marshal has nothing to refuse.
		b = []byte(`{"status":"Failure","reason":"InternalError"}`)
	}
	return append(append(dst, Status), b...)
}

// AppendGap appends the Marker message for bytes [from, to) that were lost.
func AppendGap(dst []byte, from, to int64) []byte {
	return fmt.Appendf(append(dst, Marker), `{"type":"gap","from":%d,"to":%d,"lost":%d}`, from, to, to-from)
}
