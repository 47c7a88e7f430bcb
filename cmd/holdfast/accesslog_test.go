package main

import (
	"strings"
	"testing"
	"time"
)

func TestParseLogLine(t *testing.T) {
	const combined = `192.0.2.7 - ann [17/May/2015:10:05:03 +0200] "GET /a%20b?c=1 HTTP/1.1" 200 2030 "http://ref/" "Agent \"x\" (1)"`
	l, err := parseLogLine(combined)
	if err != nil {
		t.Fatal(err)
	}
	want := logLine{ip: "192.0.2.7", user: "ann", at: l.at, method: "GET", path: "/a%20b?c=1", userAgent: `Agent \"x\" (1)`}
	if l != want {
		t.Errorf("got %+v, want %+v", l, want)
	}
	if want := time.Date(2015, 5, 17, 8, 5, 3, 0, time.UTC); !l.at.Equal(want) {
		t.Errorf("time %v, want %v", l.at, want)
	}

	for name, line := range map[string]string{
		"empty":            "",
		"words":            "hello world",
		"bad month":        `1.2.3.4 - - [17/Foo/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 1`,
		"unclosed request": `1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1 200 1`,
	} {
		if _, err := parseLogLine(line); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}

	common, err := parseLogLine(`1.2.3.4 - - [17/May/2015:10:05:03 +0000] "-" 408 -`)
	if err != nil || common.ip != "1.2.3.4" || common.userAgent != "" {
		t.Errorf("common log format: %+v, %v", common, err)
	}
}

func TestReadLogCountsWhatItCannotRead(t *testing.T) {
	const text = `1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 1

garbage
1.2.3.5 - - [17/May/2015:10:05:04 +0000] "GET / HTTP/1.1" 200 1 "-" "x"
`
	var ips []string
	skipped, err := readLog(strings.NewReader(text), func(l *logLine, _ int) error { ips = append(ips, l.ip); return nil })
	if err != nil || skipped != 1 || strings.Join(ips, " ") != "1.2.3.4 1.2.3.5" {
		t.Errorf("read %v, skipped %d, %v", ips, skipped, err)
	}
}

func FuzzParseLogLine(f *testing.F) {
	f.Add(`1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 1 "-" "x"`)
	f.Fuzz(func(t *testing.T, line string) {
		l, err := parseLogLine(line)
		if err == nil && (l.ip == "" || l.at.IsZero() && !strings.Contains(line, "0001")) {
			t.Errorf("accepted without address or time: %+v", l)
		}
	})
}
