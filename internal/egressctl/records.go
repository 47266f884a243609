package egressctl

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
)

// maxLineBytes is far above a record; a longer line is something else.
const maxLineBytes = 64 << 10

// parseRecord reads one line of a proxy's log. Text before the object, such as the pod
// name that "kubectl logs --prefix" adds, is skipped. A proxy logs other lines too, so a
// line that is no record is no error.
func parseRecord(line []byte) (audit.Record, bool) {
	start := bytes.IndexByte(line, '{')
	if start < 0 {
		return audit.Record{}, false
	}
	var r audit.Record
	if json.Unmarshal(line[start:], &r) != nil || r.Time.IsZero() {
		return audit.Record{}, false
	}
	if r.Event != audit.Decision && r.Event != audit.Close {
		return audit.Record{}, false
	}
	switch r.Decision {
	case audit.Allow, audit.Deny, audit.WouldDeny:
		return r, true
	}
	return audit.Record{}, false
}

// readRecords calls each for every record and counts the lines that are none.
func readRecords(in io.Reader, each func(line []byte, r audit.Record)) (skipped int, err error) {
	reader := bufio.NewReaderSize(in, maxLineBytes)
	for {
		line, err := reader.ReadSlice('\n')
		tooLong := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = reader.ReadSlice('\n')
		}
		if len(bytes.TrimSpace(line)) > 0 {
			if r, ok := parseRecord(line); ok && !tooLong {
				each(line, r)
			} else {
				skipped++
			}
		}
		if errors.Is(err, io.EOF) {
			return skipped, nil
		}
		if err != nil {
			return skipped, err
		}
	}
}

// recordFilter keeps records that match every list that is not empty.
type recordFilter struct {
	pods, containers, decisions, reasons []string
}

func (f *recordFilter) keeps(r *audit.Record) bool {
	return in(f.pods, r.Pod) && in(f.containers, r.ContainerID) && in(f.decisions, string(r.Decision)) && in(f.reasons, r.Reason)
}

func in(list []string, v string) bool { return len(list) == 0 || slices.Contains(list, v) }

// policyRef is the "namespace/name" a record was decided under; "" in a standalone proxy.
func policyRef(r *audit.Record) string {
	if r.Namespace == "" || r.Policy == "" || strings.Contains(r.Policy, "/") {
		return r.Policy
	}
	return r.Namespace + "/" + r.Policy
}
