// Package fatal ends the process of a database that cannot go on: after an error of the disk nobody knows what is on it. To
// try again makes it worse: the second sync succeeds, without what the first one has lost.
package fatal

import (
	"fmt"
	"log/slog"
	"sync"
)

// Guard is Pebble's logger for one database. It passes lines on at debug level; what Pebble calls fatal ends the process.
// Its methods are safe for concurrent use.
type Guard struct {
	log  *slog.Logger
	name string
	end  func(error)
	once sync.Once
}

// New returns the guard of the database of that name. end is told once why the process must end.
func New(log *slog.Logger, name string, end func(error)) *Guard {
	return &Guard{log: log, name: name, end: end}
}

// Infof implements pebble.Logger.
func (g *Guard) Infof(format string, args ...any) {
	g.log.Debug(g.name, "line", fmt.Sprintf(format, args...))
}

// Errorf implements pebble.Logger.
func (g *Guard) Errorf(format string, args ...any) {
	g.log.Error(g.name, "line", fmt.Sprintf(format, args...))
}

// Fatalf implements pebble.Logger.
func (g *Guard) Fatalf(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	g.stop(err)
	panic(err) // reached when a test's end returns: Pebble must not go on
}

// stop ends the process, or waits for the end that another has begun.
func (g *Guard) stop(err error) { g.once.Do(func() { g.end(err) }) }
