package bolt

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// A damaged file is an error that says so, or what is damaged does not matter; it is never a crash.
func TestADamagedFileIsAnErrorAndNoCrash(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "group-1.db")
	p, err := Open(Options{Dir: filepath.Dir(whole)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(60) {
		if err := l.StoreLogs([]*raft.Log{{Index: 2*i + 1, Term: 1, Data: make([]byte, 900)}, {Index: 2*i + 2, Term: 1, Data: make([]byte, 9000)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	random := rand.New(rand.NewPCG(1, 1))
	noise := func(b []byte) {
		for i := range b {
			b[i] = byte(random.Uint32())
		}
	}
	damage := map[string]func(b []byte) []byte{
		"cut in half":       func(b []byte) []byte { return b[:len(b)/2] },
		"cut to three":      func(b []byte) []byte { return b[:3*page] },
		"only meta":         func(b []byte) []byte { return b[:2*page] },
		"cut in a page":     func(b []byte) []byte { return b[:page+7] },
		"no meta":           func(b []byte) []byte { noise(b[:2*page]); return b },
		"zeroes after meta": func(b []byte) []byte { clear(b[2*page:]); return b },
		"noise after meta":  func(b []byte) []byte { noise(b[2*page:]); return b },
	}
	fatal := make(map[string]bool)
	for name := range damage {
		fatal[name] = true
	}
	for i := range 40 { // one page each
		damage[fmt.Sprint("page ", i)] = func(b []byte) []byte {
			at := 2*page + page*random.IntN(len(b)/page-2)
			noise(b[at : at+64])
			return b
		}
	}
	refused := 0
	for name, f := range damage {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "group-1.db"), f(append([]byte(nil), good...)), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		l, err := p.Open(1)
		switch {
		case err == nil && fatal[name]:
			t.Errorf("%s: opened", name)
		case err == nil:
			_ = l.Close()
		case !errors.Is(err, raftlog.ErrCorrupt):
			t.Errorf("%s: %v", name, err)
		default:
			refused++
		}
	}
	if refused < len(fatal)+5 {
		t.Errorf("only %d of %d damaged files were refused", refused, len(damage))
	}
}
