package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/node"
	"github.com/holdfastdb/holdfast/rpc/process"
)

// leave starts a node, lets it become ready and stops it. It returns the data directory; the node is stopped after the
// call of check.
func leave(t *testing.T, boltLog bool, check func(dir string)) string {
	t.Helper()
	dir := t.TempDir()
	p, err := process.Start(t.Context(), process.Config{
		GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Peer: "127.0.0.1:0",
		Node: node.Config{Name: "left", Dir: dir, Gossip: "127.0.0.1:0", Bootstrap: true, Shards: 1, Replicas: 1, BoltLog: boltLog, Timing: devTiming},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(dir)
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// debug runs a debug verb, which needs no cluster.
func debug(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"debug"}, args...), &out, &errs)
	return out.String(), errs.String(), code
}

// A log is printed whole, whichever store keeps it, and says how far the state is; the node must have stopped.
func TestDebugLogPrintsWhatAStoppedNodeLeft(t *testing.T) {
	for name, boltLog := range map[string]bool{"pebble": false, "boltdb": true} {
		t.Run(name, func(t *testing.T) {
			dir := leave(t, boltLog, func(dir string) {
				if _, errs, code := debug(t, "log", "--data", dir); code != exitRefused || !strings.Contains(errs, "stop the node first") {
					t.Errorf("of a node that runs: exit code %d, %s", code, errs)
				}
			})
			out, errs, code := debug(t, "log", "--data", dir, "-o", "json")
			if code != exitDone {
				t.Fatalf("exit code %d: %s", code, errs)
			}
			lines := json.NewDecoder(strings.NewReader(out))
			var h logHeader
			if err := lines.Decode(&h); err != nil {
				t.Fatal(err)
			}
			if h.Shard != 1 || h.First != 1 || h.Last < 3 || h.Applied.Index != h.Last || h.Applied.Term == 0 {
				t.Errorf("header %+v", h)
			}
			started := false
			for index := h.First; index <= h.Last; index++ {
				var e logEntry
				if err := lines.Decode(&e); err != nil {
					t.Fatalf("entry %d: %v", index, err)
				}
				if e.Index != index || e.Type == "" {
					t.Errorf("entry %d: %+v", index, e)
				}
				if e.Type == "command" {
					decoded, err := fsm.DecodeEntry(e.Data)
					if err != nil {
						t.Errorf("entry %d: %v", index, err)
					}
					started = started || decoded.Kind == fsm.TermStart
				}
			}
			if lines.More() || !started {
				t.Errorf("more lines than entries, or no entry that starts a term:\n%s", out)
			}
			if out, errs, code := debug(t, "log", "--data", dir, "--shard", "0"); code != exitDone || !strings.Contains(out, "shard 0, state at entry ") {
				t.Errorf("the catalog: exit code %d, %s%s", code, out, errs)
			}
		})
	}
}

func TestDebugLogOfNothing(t *testing.T) {
	if _, errs, code := debug(t, "log", "--data", t.TempDir()); code != exitRefused || !strings.Contains(errs, "node.json") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}
