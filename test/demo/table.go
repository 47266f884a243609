package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// palette holds terminal control sequences; empty ones for plain text.
type palette struct{ good, bad, bold, reset string }

// colours follows https://no-color.org and leaves files and pipes plain.
func colours(f *os.File) palette {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return palette{}
	}
	return palette{good: "\x1b[32m", bad: "\x1b[1;31m", bold: "\x1b[1m", reset: "\x1b[0m"}
}

// printTable prints the results and says whether all hold.
func printTable(w io.Writer, c palette, results []result) bool {
	head := result{what: "CHECK", expected: "EXPECTED", seen: "SEEN"}
	what, expected := width(head.what), width(head.expected)
	for _, r := range results {
		what, expected = max(what, width(r.what)), max(expected, width(r.expected))
	}
	line := func(colour, mark string, r result) {
		fmt.Fprintf(w, "%s%-6s  %s  %s  %s%s\n", colour, mark, pad(r.what, what), pad(r.expected, expected), oneLine(r.seen), c.reset)
	}
	line(c.bold, "", head)
	held := 0
	for _, r := range results {
		if r.holds() {
			held++
			line(c.good, "ok", r)
		} else {
			line(c.bad, "FAILED", r)
		}
	}
	fmt.Fprintf(w, "\n%d of %d checks hold\n", held, len(results))
	return held == len(results)
}

func width(s string) int { return utf8.RuneCountInString(s) }

func pad(s string, n int) string { return s + strings.Repeat(" ", n-width(s)) }

// oneLine keeps what went wrong from tearing the table apart.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if s == "" {
		s = "nothing"
	}
	return s
}
