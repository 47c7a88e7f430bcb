package fsm

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// update is a flag of package fsmtest, which is in this program too.
func update() bool { return flag.Lookup("update").Value.String() == "true" }

// samples are one of everything that the machine writes to the log, to disk or to other nodes.
func samples() []struct {
	name string
	b    []byte
} {
	id := [16]byte{0: 0xaa, 15: 0xbb}
	calls := []Call{{Type: 1, Op: 2, Body: []byte("body")}, Noop()}
	anonymous := Frame{Deadline: 1234, Calls: calls}
	client := Frame{Client: id, Seq: 300, AckUpTo: 299, Deadline: 1234, Calls: calls}
	keyed := Frame{Client: id, Seq: 1, Deadline: 1234, Retain: 24 * 3600 * 1000, Fingerprint: 0x0102030405060708, Calls: calls}
	results := []Result{{Body: []byte("fine")}, {Code: Conflict, Body: []byte("taken")}}
	slot := windowSlot{seq: 300, ackUpTo: 299, deadline: 1234, retain: 5, fingerprint: 7, index: 1000, time: 1233, results: AppendResults(nil, results)}
	applied := Applied{Index: 1000, Term: 3, Time: 1233, Clients: 2, ConfigIndex: 9, Configuration: []byte("voters")}
	type sample = struct {
		name string
		b    []byte
	}
	return []sample{
		{"entry of frames", (&Entry{Kind: Commands, Time: 1233, Frames: []Frame{anonymous, client}}).Append(nil)},
		{"entry term start", (&Entry{Kind: TermStart, Time: 1233}).Append(nil)},
		{"entry sweep", (&Entry{Kind: Sweep, Time: 1233}).Append(nil)},
		{"entry nudge", (&Entry{Kind: Nudge, Time: 1233}).Append(nil)},
		{"entry checksum", (&Entry{Kind: Checksum, Time: 1233, Agreed: Sum{Index: 900, Hash: 0x0102030405060708}}).Append(nil)},
		{"entry checksum, a replica differs", (&Entry{Kind: Checksum, Time: 1233, Agreed: Sum{Index: 900, Hash: 1}, Differ: 300}).Append(nil)},
		{"frame anonymous", anonymous.Append(nil)},
		{"frame of a client", client.Append(nil)},
		{"frame of a key", keyed.Append(nil)},
		{"results", AppendResults(nil, results)},
		{"frame outcome", AppendFrameOutcome(nil, &FrameOutcome{Replayed: true, Index: 1000, Time: 1233, Results: results})},
		{"frame refusal", AppendFrameOutcome(nil, &FrameOutcome{Code: Expired, Message: "late", Index: 1000, Time: 1233})},
		{"window slot", slot.append(nil)},
		{"window key", appendWindowKey(nil, id, 12)},
		{"expiry key", appendExpiryKey(nil, 1_700_000_000_000, 7, []byte("key"))},
		{"applied", appendApplied(nil, &applied)},
		{"applied one-shots", appendApplied(nil, &Applied{Index: 1000, Term: 3, Time: 1233, Clients: 2, OneShots: 70_000})},
		{"applied key", []byte(keyApplied)},
		{"configuration", appendConfiguration(nil, &applied)},
		{"configuration key", []byte(keyConfiguration)},
	}
}

// What is in logs and on disks must stay readable: a change here needs a new format version.
func TestEncodingsAreAsTheyWere(t *testing.T) {
	var b strings.Builder
	for _, s := range samples() {
		fmt.Fprintf(&b, "%-18s %x\n", s.name, s.b)
	}
	path := filepath.Join("testdata", "encodings.golden")
	if update() {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("encodings changed:\n%s\nwant\n%s", b.String(), want)
	}
}

func TestExpiryKeysSortByTime(t *testing.T) {
	var keys []string
	for _, at := range []Time{0, 1, 255, 256, 1 << 32, 1_700_000_000_000, 1<<48 - 1} {
		keys = append(keys, string(appendExpiryKey(nil, at, 7, []byte("k"))))
	}
	if !slices.IsSorted(keys) {
		t.Errorf("not in order: %x", keys)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	for _, s := range samples() {
		f.Add(s.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v", err)
			}
			return
		}
		again, err := DecodeEntry(e.Append(nil))
		if err != nil || !reflect.DeepEqual(e, again) {
			t.Errorf("%+v became %+v: %v", e, again, err)
		}
	})
}

func FuzzDecodeFrame(f *testing.F) {
	for _, s := range samples() {
		f.Add(s.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, rest, err := DecodeFrame(b)
		if err != nil {
			return
		}
		if len(frame.Calls) > MaxOps || frame.Retain > MaxRetain {
			t.Errorf("out of bounds: %+v", frame)
		}
		again, _, err := DecodeFrame(append(frame.Append(nil), rest...))
		if err != nil || !reflect.DeepEqual(frame, again) {
			t.Errorf("%+v became %+v: %v", frame, again, err)
		}
	})
}

func FuzzDecodeResults(f *testing.F) {
	for _, s := range samples() {
		f.Add(s.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if results, err := DecodeResults(b); err == nil {
			again, err := DecodeResults(AppendResults(nil, results))
			if err != nil || !reflect.DeepEqual(results, again) {
				t.Errorf("%+v became %+v: %v", results, again, err)
			}
		}
		if o, _, err := DecodeFrameOutcome(b); err == nil {
			again, _, err := DecodeFrameOutcome(AppendFrameOutcome(nil, &o))
			if err != nil || !reflect.DeepEqual(o, again) {
				t.Errorf("%+v became %+v: %v", o, again, err)
			}
		}
	})
}

func FuzzDecodeStored(f *testing.F) {
	for _, s := range samples() {
		f.Add(s.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeWindowSlot(b); err == nil {
			again, err := decodeWindowSlot(s.append(nil))
			if err != nil || !reflect.DeepEqual(s, again) {
				t.Errorf("%+v became %+v: %v", s, again, err)
			}
		}
		if at, id, key, ok := splitExpiryKey(b); ok && !bytes.Equal(appendExpiryKey(nil, at, id, key), b) {
			t.Errorf("expiry key %x", b)
		}
	})
}

func TestSafeErrors(t *testing.T) {
	for _, test := range []struct {
		err  error
		safe bool
	}{
		{ErrNotLeader, true}, {ErrOverloaded, true}, {ErrClosed, true}, {ErrOutcomeUnknown, false},
		{fmt.Errorf("ask node 2: %w", ErrNotLeader), true}, {errors.New("anything"), false}, {nil, false},
	} {
		if got := Safe(test.err); got != test.safe {
			t.Errorf("Safe(%v) = %v", test.err, got)
		}
	}
}
