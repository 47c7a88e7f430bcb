package history

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/client"
)

// ask is an operation of the tests' own data type.
type ask struct {
	Weight int `json:"weight"`
}

func (ask) DataType() string { return "asks" }
func (ask) Describe() string { return "ask" }

func TestErrorsSayWhatIsKnown(t *testing.T) {
	h := New()
	for _, test := range []struct {
		err  error
		want Outcome
	}{
		{nil, Definite},
		{fmt.Errorf("%w: a node died", client.ErrOutcomeUnknown), Unknown},
		{fmt.Errorf("%w: no leader", client.ErrUnavailable), Failed},
		{errors.New("anything else"), Failed},
	} {
		h.Begin("p", ask{1}).End("out", client.Trace{Index: 3}, test.err)
		ops := h.Ops()
		op := ops[len(ops)-1]
		if op.Outcome != test.want || (op.Output != nil) != (test.err == nil) || op.Trace.Index != 3 || op.Input != (ask{1}) {
			t.Errorf("%v: %+v", test.err, op)
		}
	}
}

// What did not return may take effect until the end.
func TestUnknownOutcomesLastUntilTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		time.Sleep(time.Second)
		quick, lost := h.Begin("a", ask{1}), h.Begin("b", ask{2})
		h.Begin("c", ask{3})
		time.Sleep(time.Second)
		quick.End(1, client.Trace{}, nil)
		lost.End(nil, client.Trace{}, client.ErrOutcomeUnknown)
		time.Sleep(time.Minute)
		ops := h.Ops()
		for i, want := range []time.Duration{2 * time.Second, 62 * time.Second, 62 * time.Second} {
			if ops[i].Call != time.Second || ops[i].Return != want {
				t.Errorf("operation %d: from %s to %s, want %s", i, ops[i].Call, ops[i].Return, want)
			}
		}
		if ops[2].Outcome != Unknown {
			t.Errorf("an operation that never returned is %s", ops[2].Outcome)
		}
	})
}

func TestSaveWritesALineForEachOperation(t *testing.T) {
	h := New()
	h.Begin("p", ask{2}).End(true, client.Trace{Shard: 1, Client: [16]byte{0xab}, Seq: 4, Op: 5, Index: 6, Time: time.UnixMilli(7).UTC()}, nil)
	h.Begin("q", ask{3})
	dir := t.TempDir()
	if err := Save(dir, h.Ops()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, File))
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	if len(lines) != 2 {
		t.Fatalf("%s", text)
	}
	var first map[string]any
	if err := json.Unmarshal(lines[0], &first); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"client": "ab000000000000000000000000000000", "seq": 4.0, "op": 5.0, "index": 6.0, "time": "1970-01-01T00:00:00.007Z", "outcome": "definite", "type": "asks", "output": true} {
		if first[key] != want {
			t.Errorf("%s: %v, want %v", key, first[key], want)
		}
	}
}
