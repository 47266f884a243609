package frame

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/remotecommand"
)

func TestParse(t *testing.T) {
	tests := map[string]struct {
		in      []byte
		want    Message
		wantErr error
	}{
		"stdin":                        {in: []byte("\x00abc"), want: Message{Channel: Stdin, Data: []byte("abc")}},
		"empty stdin":                  {in: []byte{0}, want: Message{Channel: Stdin, Data: []byte{}}},
		"resize":                       {in: []byte("\x04" + `{"Width":80,"Height":24}`), want: Message{Channel: Resize, Size: Size{80, 24}}},
		"close stdin":                  {in: []byte{255, 0}, want: Message{Channel: Close}},
		"no channel":                   {in: nil, wantErr: ErrEmpty},
		"stdout from a client":         {in: []byte("\x01x"), wantErr: ErrChannel},
		"status from a client":         {in: []byte("\x03{}"), wantErr: ErrChannel},
		"unknown channel":              {in: []byte{77}, wantErr: ErrChannel},
		"resize without a payload":     {in: []byte{4}, wantErr: ErrPayload},
		"resize to nothing":            {in: []byte("\x04" + `{"Width":0,"Height":24}`), wantErr: ErrPayload},
		"resize beyond 16 bits":        {in: []byte("\x04" + `{"Width":65536,"Height":24}`), wantErr: ErrPayload},
		"negative resize":              {in: []byte("\x04" + `{"Width":-1,"Height":24}`), wantErr: ErrPayload},
		"close without a channel":      {in: []byte{255}, wantErr: ErrPayload},
		"close of stdout":              {in: []byte{255, 1}, wantErr: ErrPayload},
		"close of two channels":        {in: []byte{255, 0, 0}, wantErr: ErrPayload},
		"resize with trailing garbage": {in: []byte("\x04" + `{"Width":1,"Height":1}x`), wantErr: ErrPayload},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(tt.in)
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("error %v, want %v", err, tt.wantErr)
			}
			if got.Channel != tt.want.Channel || !bytes.Equal(got.Data, tt.want.Data) || got.Size != tt.want.Size {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestStatusIsWhatKubernetesClientsRead(t *testing.T) {
	tests := map[string]struct {
		exit       Exit
		wantStatus string
		wantCode   string
	}{
		"success":  {Exit{}, metav1.StatusSuccess, ""},
		"failure":  {Exit{Code: 3, Message: "exit code 3"}, metav1.StatusFailure, "3"},
		"killed":   {Exit{Code: 137, Message: "killed by SIGKILL"}, metav1.StatusFailure, "137"},
		"negative": {Exit{Code: -1}, metav1.StatusFailure, "-1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := AppendStatus(nil, tt.exit)
			if b[0] != remotecommand.StreamErr {
				t.Fatalf("channel %d", b[0])
			}
			var s metav1.Status
			if err := json.Unmarshal(b[1:], &s); err != nil {
				t.Fatal(err)
			}
			if s.Status != tt.wantStatus || s.Message != tt.exit.Message {
				t.Errorf("got %+v", s)
			}
			if tt.wantCode == "" {
				return
			}
			if s.Reason != remotecommand.NonZeroExitCodeReason || len(s.Details.Causes) != 1 ||
				s.Details.Causes[0].Type != remotecommand.ExitCodeCauseType || s.Details.Causes[0].Message != tt.wantCode {
				t.Errorf("got %+v", s)
			}
		})
	}
}

func TestChannelNumbersAreKubernetes(t *testing.T) {
	got := [...]int{int(Stdin), int(Stdout), int(Stderr), int(Status), int(Resize), int(Close)}
	want := [...]int{remotecommand.StreamStdIn, remotecommand.StreamStdOut, remotecommand.StreamStdErr,
		remotecommand.StreamErr, remotecommand.StreamResize, remotecommand.StreamClose}
	if got != want || Protocol != remotecommand.StreamProtocolV5Name {
		t.Errorf("got %v %q, want %v %q", got, Protocol, want, remotecommand.StreamProtocolV5Name)
	}
}

func TestGapMarker(t *testing.T) {
	b := AppendGap(nil, 10, 25)
	if b[0] != Marker {
		t.Fatalf("channel %d", b[0])
	}
	if got, want := string(b[1:]), `{"type":"gap","from":10,"to":25,"lost":15}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "\x00", "\x00abc", "\x04{\"Width\":80,\"Height\":24}", "\x04{}", "\xff\x00", "\xff", "\x01x", "\x05"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			if m.Data != nil || m.Size != (Size{}) {
				t.Fatalf("a refused message carries content: %+v", m)
			}
			return
		}
		switch m.Channel {
		case Stdin:
			if !bytes.Equal(m.Data, b[1:]) {
				t.Fatalf("stdin %q from %q", m.Data, b)
			}
		case Resize:
			if m.Size.Width == 0 || m.Size.Height == 0 {
				t.Fatalf("empty size accepted: %q", b)
			}
		case Close:
			if !bytes.Equal(b, []byte{255, 0}) {
				t.Fatalf("close accepted: %q", b)
			}
		default:
			t.Fatalf("channel %d accepted", m.Channel)
		}
	})
}
