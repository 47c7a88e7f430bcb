package holdfasttest

import (
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"testing"
)

// Main runs a package's tests and examples, which share one cluster that started is given before the first of them. It
// returns their exit code:
//
//	func TestMain(m *testing.M) {
//		os.Exit(holdfasttest.Main(m, 1, func(c *holdfasttest.Cluster) { cluster = c }))
//	}
func Main(m *testing.M, nodes int, started func(*Cluster)) (code int) {
	life := &wholeRun{}
	defer func() {
		life.end()
		if life.failed.Load() && code == 0 {
			code = 1
		}
	}()
	started(Start(life, nodes))
	return m.Run()
}

// wholeRun is a testing.TB whose end is the end of the package's tests. It has what a cluster uses of it.
type wholeRun struct {
	testing.TB
	cleanups []func()
	failed   atomic.Bool
}

func (w *wholeRun) Helper() {}

func (w *wholeRun) Cleanup(f func()) { w.cleanups = append(w.cleanups, f) }

func (w *wholeRun) TempDir() string {
	dir, err := os.MkdirTemp("", "holdfast")
	if err != nil {
		w.Fatalf("%v", err)
	}
	w.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (w *wholeRun) Errorf(format string, args ...any) {
	w.failed.Store(true)
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

func (w *wholeRun) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func (w *wholeRun) end() {
	for _, f := range slices.Backward(w.cleanups) {
		f()
	}
}
