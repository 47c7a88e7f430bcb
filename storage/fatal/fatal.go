// Package fatal ends the process of a database that cannot go on: after an error of the disk nobody knows what is on it, and
// to try again would make it worse, for a sync that is tried again succeeds without what the first one has lost.
package fatal

import (
	"fmt"
	"log/slog"
	"sync"
)

// Logger is Pebble's logger for one database. It passes lines on at debug level; what Pebble calls fatal ends the process.
// Its methods are safe for concurrent use.
type Logger struct {
	log  *slog.Logger
	name string
	end  func(error)
	once sync.Once
}

// New returns the logger of the database of that name. end is told once why the process must end.
func New(log *slog.Logger, name string, end func(error)) *Logger {
	return &Logger{log: log, name: name, end: end}
}

// Infof implements pebble.Logger.
func (l *Logger) Infof(format string, args ...any) {
	l.log.Debug(l.name, "line", fmt.Sprintf(format, args...))
}

// Errorf implements pebble.Logger.
func (l *Logger) Errorf(format string, args ...any) {
	l.log.Error(l.name, "line", fmt.Sprintf(format, args...))
}

// Fatalf implements pebble.Logger.
func (l *Logger) Fatalf(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	l.stop(err)
	panic(err) // reached when a test's end returns: Pebble must not go on
}

// stop ends the process, or waits for the end that another has begun.
func (l *Logger) stop(err error) { l.once.Do(func() { l.end(err) }) }
