package main

import (
	"strings"
	"testing"
)

func TestTableSaysWhatDoesNotHold(t *testing.T) {
	results := []result{
		{"allowed", "200 OK", "200 OK"},
		{"denied", "403 no", "curl: (28)\ntimed out"},
	}
	for name, test := range map[string]struct {
		palette palette
		results []result
		want    string
		holds   bool
	}{
		"plain":    {palette{}, results, "        CHECK    EXPECTED  SEEN\nok      allowed  200 OK    200 OK\nFAILED  denied   403 no    curl: (28) timed out\n\n1 of 2 checks hold\n", false},
		"coloured": {palette{"<g>", "<b>", "<B>", "</>"}, results[:1], "<B>        CHECK    EXPECTED  SEEN</>\n<g>ok      allowed  200 OK    200 OK</>\n\n1 of 1 checks hold\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			if holds := printTable(&out, test.palette, test.results); holds != test.holds {
				t.Errorf("holds: %v, want %v", holds, test.holds)
			}
			if out.String() != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", out.String(), test.want)
			}
		})
	}
}
