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

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
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
func (r *run) dumpLogs() (logs []*replicaLog) {
	_ = r.c.net.heal() // what a fault left whose end failed
	for _, n := range r.c.Nodes {
		n.Resume()
		if n.disk != nil {
			_ = n.disk.thaw()
		}
	}
	var stopping sync.WaitGroup
	late := make([]error, len(r.c.Nodes))
	for i, n := range r.c.Nodes {
		stopping.Go(func() { late[i] = n.Stop(stopTime) })
	}
	stopping.Wait()
	for i, n := range r.c.Nodes {
		if late[i] != nil {
			r.violate("%v", late[i])
			n.Kill()
		}
		for shard := range uint32(r.c.opts.Shards + 1) {
			if shard > 0 && r.isWiped(n) {
				continue // it has no replicas any more
			}
			l, err := r.dump(n, shard)
			if err != nil {
				r.violate("log of shard %d of %s: %v", shard, n.Name, err)
				continue
			}
			logs = append(logs, l)
		}
	}
	return logs
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
			r.violate("%v", v)
		}
	}
	byShard := make(map[uint32]map[string][]check.Entry)
	for _, l := range logs {
		// In stopping, one may apply more than another.
		if whole := uint64(len(l.entries)) == l.applied; l.applied < settled[l.shard] || !whole && !r.plan.ShortLogs {
			r.violate("shard %d: %s has applied up to %d, holds %d entries of that, and was at %d before it stopped",
				l.shard, l.node, l.applied, len(l.entries), settled[l.shard])
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
		sums := comparisons(log)
		res.Sums += sums
		if sums == 0 && settled != nil {
			r.violate("shard %d: its replicas never compared their states", shard)
		}
		if shard != 0 { // the catalog has no operations of the history
			merged[shard] = log
		}
	}
	if !r.plan.ShortLogs {
		replayed := check.Replay(r.types, merged, ops)
		violate(replayed.Violations)
		res.Replayed, res.Unclear = replayed.Checked, replayed.Unclear
		res.Lent, res.ByType = replayed.Lent, replayed.ByType
		if res.Replayed == 0 || res.Lent == 0 {
			r.violate("the replay judged %d answers and %d decisions from leases", res.Replayed, res.Lent)
		}
		unclear := 0
		for _, part := range r.w.parts {
			unclear += part.Unclear(ops, replayed.UnclearOps)
		}
		if float64(unclear) > maxUnclear*float64(res.Replayed) {
			r.violate("the replay could not tell what %d of %d operations meant, and should have known it of %d", res.Unclear, res.Replayed, unclear)
		}
	}
	for _, part := range r.w.parts {
		r.judged.Add(part.Judge(ops, r.shardTimes))
		sampled := check.Porcupine(ops, check.Sampling{Sequences: part.Sequences(), Dir: r.c.opts.Dir})
		violate(sampled.Violations)
		if err := sampled.Enough(); err != nil {
			r.violate("by porcupine: %v", err)
		}
		res.Sampled += sampled.Operations
		res.Unsampled += sampled.Left
	}
	violate(r.judged.Violations)
	for _, what := range r.judged.Idle() {
		r.violate("there were no %s", what)
	}
	res.Looked = r.judged.Looked
}

// maxUnclear is the share of the operations that the replay may not understand, beside those that nobody could.
const maxUnclear = 0.01

// stampDelay is how far a shard's time may be from that of the callers, who have the same clock: a leader's begins at its
// election, and is counted in milliseconds from there.
const stampDelay = 100 * time.Millisecond

// shardTimes is models.ShardTimes.
func (r *run) shardTimes(d time.Duration) (earliest, latest fsm.Time) {
	at := r.w.begin.Add(d)
	return fsm.Time(at.Add(-stampDelay).UnixMilli()), fsm.Time(at.Add(stampDelay).UnixMilli())
}

// leaderChange is a line in which a node says that it leads.
type leaderChange struct {
	at    time.Duration
	shard uint32
	term  uint64
	node  string
}

// crashed tells whether a line is how the Go runtime begins to say why it ends a process. A node that cannot go on says so
// itself, and why.
func crashed(line []byte) bool {
	for _, how := range []string{"panic: ", "fatal error: ", "WARNING: DATA RACE"} {
		if bytes.HasPrefix(line, []byte(how)) {
			return true
		}
	}
	return false
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
			if json.Unmarshal(lines.Bytes(), &line) != nil { // others than the logger write there too
				if crashed(lines.Bytes()) {
					r.violate("%s: %s", n.Name, lines.Text())
				}
				continue
			}
			if line.Msg == "the states of two replicas differ" { // the metric goes with the process
				r.violate("%s: %s", n.Name, lines.Text())
			}
			if line.Msg != "leading" || line.Group == 0 {
				continue
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
