package internet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// controlHandler lets a test change the zone:
//
//	PUT /records/{name}     a Record as JSON
//	DELETE /records/{name}
func controlHandler(zone *Zone) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /records/{name}", func(w http.ResponseWriter, r *http.Request) {
		var record Record
		decoder := json.NewDecoder(r.Body)
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&record); err != nil {
			http.Error(w, "record: "+err.Error(), http.StatusBadRequest)
			return
		}
		zone.Set(r.PathValue("name"), record)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("DELETE /records/{name}", func(w http.ResponseWriter, r *http.Request) {
		zone.Remove(r.PathValue("name"))
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

// Client reads and controls a running internet from outside its namespace.
type Client struct {
	// LogPath is the request log; Control the unix socket; CAPath the
	// certificate of the test authority, PEM.
	LogPath, Control, CAPath string
}

// Events returns what reached the internet after since, oldest first.
func (c *Client) Events(since time.Time) ([]Event, error) { return ReadEvents(c.LogPath, since) }

// SetRecord adds or replaces what name resolves to; it holds for the next
// query.
func (c *Client) SetRecord(ctx context.Context, name string, r Record) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return c.control(ctx, http.MethodPut, name, body)
}

// RemoveRecord makes name not exist (unless a wildcard covers it).
func (c *Client) RemoveRecord(ctx context.Context, name string) error {
	return c.control(ctx, http.MethodDelete, name, nil)
}

func (c *Client) control(ctx context.Context, method, name string, body []byte) error {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.Control)
		},
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://control/records/"+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Do(request)
	if err != nil {
		return fmt.Errorf("internet control: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		message, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		return fmt.Errorf("internet control: %s: %s", response.Status, strings.TrimSpace(string(message)))
	}
	return nil
}
