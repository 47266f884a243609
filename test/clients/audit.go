package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// record is what the matrix looks at in an audit record.
type record struct {
	Event, Decision, Reason, Method, Host string
	ContainerID                           string `json:"container_id"`
	Port, Status                          int
}

// auditLog reads the proxy's audit log as it grows.
type auditLog struct {
	file   string
	offset int
}

// settle is how long the log must not grow before a visit's records count as complete;
// the proxy writes a record at once.
const settle = 150 * time.Millisecond

func (l *auditLog) read() ([]byte, error) {
	last := -1
	for {
		data, err := os.ReadFile(l.file)
		if err != nil {
			return nil, err
		}
		if len(data) == last && (last == 0 || data[last-1] == '\n') {
			fresh := data[l.offset:]
			l.offset = last
			return fresh, nil
		}
		last = len(data)
		time.Sleep(settle)
	}
}

func (l *auditLog) skip() error {
	_, err := l.read()
	return err
}

// next returns the decisions since the last call.
func (l *auditLog) next() ([]record, error) {
	data, err := l.read()
	if err != nil {
		return nil, err
	}
	var out []record
	for line := range bytes.Lines(data) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("audit log: %w: %s", err, line)
		}
		if r.Event == "decision" {
			out = append(out, r)
		}
	}
	return out, nil
}
