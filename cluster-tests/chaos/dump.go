package chaos

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// replicaLog is the log of a shard as one node holds it, up to what it has applied.
type replicaLog struct {
	shard   uint32
	node    string
	applied uint64
	entries []check.Entry
}

// logTypes are the names that holdfast debug log gives to types of entries.
var logTypes = map[string]raft.LogType{
	"command": raft.LogCommand, "configuration": raft.LogConfiguration, "noop": raft.LogNoop, "barrier": raft.LogBarrier,
}

// stopTime is how long a node may take to stop in peace.
const stopTime = 20 * time.Second

// dumpLogs stops the nodes in peace and reads what they leave.
func (r *run) dumpLogs() (logs []*replicaLog, problems []string) {
	var stopping sync.WaitGroup
	late := make([]error, len(r.c.Nodes))
	for i, n := range r.c.Nodes {
		stopping.Go(func() { late[i] = n.Stop(stopTime) })
	}
	stopping.Wait()
	for i, n := range r.c.Nodes {
		if late[i] != nil {
			problems = append(problems, late[i].Error())
			n.Kill()
		}
		for shard := range uint32(r.c.opts.Shards + 1) {
			if shard > 0 && slices.Contains(r.wiped, n) {
				continue // it has no replicas any more
			}
			l, err := r.dump(n, shard)
			if err != nil {
				problems = append(problems, fmt.Sprintf("log of shard %d of %s: %v", shard, n.Name, err))
				continue
			}
			logs = append(logs, l)
		}
	}
	return logs, problems
}

// dump reads one log with the command line, as operators do.
func (r *run) dump(n *Node, shard uint32) (*replicaLog, error) {
	cmd := r.c.command("debug", "log", "--data", n.data, "--shard", fmt.Sprint(shard), "-o", "json")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, complaints.String())
	}
	lines := json.NewDecoder(bytes.NewReader(out))
	var header struct{ Applied struct{ Index uint64 } }
	if err := lines.Decode(&header); err != nil {
		return nil, err
	}
	l := &replicaLog{shard: shard, node: n.Name, applied: header.Applied.Index}
	for lines.More() {
		var e struct {
			Index, Term uint64
			Type        string
			Data        []byte
		}
		if err := lines.Decode(&e); err != nil {
			return nil, err
		}
		kind, known := logTypes[e.Type]
		if !known {
			return nil, fmt.Errorf("entry %d has type %q", e.Index, e.Type)
		}
		if e.Index <= l.applied { // others may not be committed
			l.entries = append(l.entries, check.Entry{Index: e.Index, Term: e.Term, Type: kind, Data: e.Data})
		}
	}
	l.entries = check.Stamped(l.entries, r.w.history.Start())
	return l, nil
}

// judge checks the logs against each other, and the history against the logs and by porcupine.
func (r *run) judge(res *Result, ops []history.Op, logs []*replicaLog, settled map[uint32]uint64) {
	violate := func(list []check.Violation) {
		for _, v := range list {
			res.Violations = append(res.Violations, v.String())
		}
	}
	byShard := make(map[uint32]map[string][]check.Entry)
	for _, l := range logs {
		// In stopping, one may apply more than another.
		if l.applied < settled[l.shard] || uint64(len(l.entries)) != l.applied {
			res.Violations = append(res.Violations, fmt.Sprintf("shard %d: %s has applied up to %d, holds %d entries of that, and was at %d before it stopped",
				l.shard, l.node, l.applied, len(l.entries), settled[l.shard]))
		}
		if byShard[l.shard] == nil {
			byShard[l.shard] = make(map[string][]check.Entry)
		}
		byShard[l.shard][l.node] = l.entries
		res.Entries += len(l.entries)
	}
	merged := make(map[uint32][]check.Entry)
	for shard, replicas := range byShard {
		log, violations := check.Merge(shard, replicas)
		violate(violations)
		if shard != 0 { // the catalog has no operations of the history
			merged[shard] = log
		}
	}
	replayed := check.Replay(merged, ops)
	violate(replayed.Violations)
	res.Replayed, res.Lent = replayed.Checked, replayed.Lent

	res.Promised = r.checkPromises(ops, violate)

	rules := counter.Params{Algorithm: counter.FixedWindow, Rate: 10_000_000, Window: neverEnds * 1000}
	sampled := check.Porcupine(ops, check.Sampling{
		Key: func(op *history.Op) (string, bool) {
			q := op.Input.(models.LimitOp).Request
			return q.Client, q.Resource == counted
		},
		Model: func(_ string, ops []*history.Op) (porcupine.Model, bool) {
			return models.LimitSequence(rules), models.CanJudge(rules, ops)
		},
		Dir: r.c.opts.Dir,
	})
	violate(sampled.Violations)
	res.Sampled = sampled.Operations
}

// leaderChange is a line in which a node says that it leads.
type leaderChange struct {
	at    time.Duration
	shard uint32
	term  uint64
	node  string
}

// leaderChanges reads from the nodes' own words who led what since when.
func (r *run) leaderChanges() (changes []leaderChange, err error) {
	for _, n := range r.c.Nodes {
		text, err := os.ReadFile(n.log)
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(bytes.NewReader(text))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var line struct {
				Time  time.Time
				Msg   string
				Group uint32
				Term  uint64
			}
			if json.Unmarshal(lines.Bytes(), &line) != nil || line.Msg != "leading" || line.Group == 0 {
				continue // others than the logger write there too, such as a panic
			}
			if at := line.Time.Sub(r.w.begin); at > 0 {
				changes = append(changes, leaderChange{at, line.Group, line.Term, n.Name})
			}
		}
	}
	slices.SortFunc(changes, func(a, b leaderChange) int { return int(a.at - b.at) })
	return changes, nil
}

// artefact is the path of a file of the history.
func (r *run) artefact(name string) string { return filepath.Join(r.c.opts.Dir, name) }
