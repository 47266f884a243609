package internet

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// Kind of an Event.
type Kind string

const (
	// KindConnect is an accepted TCP connection, before any byte is read.
	KindConnect Kind = "connect"
	// KindHTTP is a request, with or without TLS, when its header is read.
	KindHTTP Kind = "http"
	// KindTCP is a connection to a TCP echo server, when it closes.
	KindTCP Kind = "tcp"
	// KindUDP is a datagram at a UDP echo server.
	KindUDP Kind = "udp"
	// KindDNS is a question at a DNS server.
	KindDNS Kind = "dns"
)

// Event is one line of the log: something that reached the internet.
type Event struct {
	Time time.Time `json:"time"`
	Kind Kind      `json:"kind"`
	// Server is the address and port that was reached; Client is the peer as
	// IP:port. Nothing translates addresses on the way, so Client is a pod's IP.
	Server string `json:"server"`
	Client string `json:"client"`

	TLS    bool        `json:"tls,omitempty"`
	SNI    string      `json:"sni,omitempty"`
	Method string      `json:"method,omitempty"`
	Host   string      `json:"host,omitempty"`
	URI    string      `json:"uri,omitempty"`
	Header http.Header `json:"header,omitempty"`

	// Name and Type are the question of a DNS query.
	Name string `json:"name,omitempty"`
	Type string `json:"type,omitempty"`

	Bytes int64 `json:"bytes,omitempty"`
}

// Log appends events to a file, one JSON object a line.
type Log struct {
	mu   sync.Mutex
	file *os.File
	now  func() time.Time
}

// OpenLog opens or creates the log.
func OpenLog(path string) (*Log, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("request log: %w", err)
	}
	return &Log{file: f, now: time.Now}, nil
}

// Add writes e with the current time, before the caller answers the request,
// so that a test that has the answer also finds the event.
func (l *Log) Add(e Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Time = l.now()
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = l.file.Write(append(line, '\n'))
	return err
}

// Close closes the file.
func (l *Log) Close() error { return l.file.Close() }

// ReadEvents returns the events of the log at path, oldest first, that are
// newer than since; a log that does not exist yet has none.
func ReadEvents(path string, since time.Time) ([]Event, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("request log: %w", err)
	}
	defer f.Close()
	var events []Event
	reader := bufio.NewReader(f)
	for n := 1; ; n++ {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			// What has no newline yet is still being written.
			return events, nil
		}
		if err != nil {
			return nil, fmt.Errorf("request log: %w", err)
		}
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("request log, line %d: %w", n, err)
		}
		if e.Time.After(since) {
			events = append(events, e)
		}
	}
}
