package process

import (
	"bytes"
	"testing"

	"github.com/sandbox-egress/sandbox-egress/internal/process/frame"
)

func BenchmarkAppendOutput(b *testing.B) {
	for name, data := range map[string][]byte{
		"lines":       bytes.Repeat(append(bytes.Repeat([]byte("x"), 99), '\n'), 655),
		"short-lines": bytes.Repeat([]byte("y\n"), 32<<10),
		"zeros":       make([]byte, 64<<10),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			var line []byte
			for b.Loop() {
				line = appendOutput(line[:0], frame.Stdout, data, 1)
			}
		})
	}
}
