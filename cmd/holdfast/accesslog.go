package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// logLine is one request of an access log.
type logLine struct {
	ip, user  string
	at        time.Time
	method    string
	path      string
	userAgent string
}

// key returns what a policy counts by.
func (l *logLine) key(name string) string {
	switch name {
	case "ip":
		return l.ip
	case "user":
		return l.user
	case "path":
		return l.path
	case "user-agent":
		return l.userAgent
	}
	return ""
}

var logKeys = []string{"ip", "user", "path", "user-agent"}

const clfTime = "02/Jan/2006:15:04:05 -0700"

var errLogLine = errors.New("not in Combined Log Format")

// parseLogLine reads one line in Combined Log Format (https://httpd.apache.org/docs/2.4/logs.html#combined):
//
//	host ident user [time] "request" status bytes "referer" "user-agent"
//
// The last two may be missing (Common Log Format).
func parseLogLine(line string) (logLine, error) {
	var l logLine
	var ok bool
	if l.ip, line, ok = strings.Cut(line, " "); !ok || l.ip == "" {
		return l, errLogLine
	}
	if _, line, ok = strings.Cut(line, " "); !ok {
		return l, errLogLine
	}
	if l.user, line, ok = strings.Cut(line, " ["); !ok {
		return l, errLogLine
	}
	stamp, line, ok := strings.Cut(line, `] `)
	if !ok {
		return l, errLogLine
	}
	var err error
	if l.at, err = time.Parse(clfTime, stamp); err != nil {
		return l, fmt.Errorf("%w: %w", errLogLine, err)
	}
	request, line, ok := cutQuoted(line)
	if !ok {
		return l, errLogLine
	}
	l.method, request, _ = strings.Cut(request, " ")
	l.path, _, _ = strings.Cut(request, " ")
	// status and bytes, then the optional quoted fields
	if i := strings.IndexByte(line, '"'); i >= 0 {
		if _, line, ok = cutQuoted(line[i:]); ok {
			l.userAgent, _, _ = cutQuoted(strings.TrimLeft(line, " "))
		}
	}
	return l, nil
}

// cutQuoted splits off a leading quoted field, in which a backslash protects the next byte.
func cutQuoted(s string) (field, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		return "", s, false
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return s[1:i], s[i+1:], true
		}
	}
	return "", s, false
}

const maxLogLine = 1 << 20

// readLog calls each for every line, in the order of the file, and returns how many lines it could not read.
func readLog(r io.Reader, each func(l *logLine, bytes int) error) (skipped int, err error) {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(make([]byte, 64<<10), maxLogLine)
	for scanner.Scan() {
		text := scanner.Text()
		if strings.TrimSpace(text) == "" {
			continue
		}
		l, err := parseLogLine(text)
		if err != nil {
			skipped++
			continue
		}
		if err := each(&l, len(text)+1); err != nil {
			return skipped, err
		}
	}
	if err := scanner.Err(); err != nil {
		return skipped, fmt.Errorf("read the log: %w", err)
	}
	return skipped, nil
}
