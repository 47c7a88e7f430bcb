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
)

// replicaLog is the log of a shard as one node holds it, up to what it has applied.
type replicaLog struct {
	shard   uint32
	node    string
	applied uint64
	entries []logEntry
}

// logEntry is a line of holdfast debug log -o json.
type logEntry struct {
	Index, Term uint64
	Type        string
	Data        []byte
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
		var e logEntry
		if err := lines.Decode(&e); err != nil {
			return nil, err
		}
		if e.Index <= l.applied { // others may not be committed
			l.entries = append(l.entries, e)
		}
	}
	return l, nil
}

// checkReplicas compares what the replicas of each shard have applied: the same, without a hole, and all that was settled
// before the nodes stopped. In stopping, one may apply more than another.
func checkReplicas(logs []*replicaLog, settled map[uint32]uint64) (violations []string) {
	longest := make(map[uint32]*replicaLog)
	for _, l := range logs {
		if best := longest[l.shard]; best == nil || len(l.entries) > len(best.entries) {
			longest[l.shard] = l
		}
	}
	for _, l := range logs {
		best := longest[l.shard]
		if l.applied < settled[l.shard] || uint64(len(l.entries)) != l.applied {
			violations = append(violations, fmt.Sprintf("shard %d: %s has applied up to %d, holds %d entries of that, and was at %d before",
				l.shard, l.node, l.applied, len(l.entries), settled[l.shard]))
		}
		for i, e := range l.entries {
			other := best.entries[i]
			if e.Index != uint64(i+1) {
				violations = append(violations, fmt.Sprintf("shard %d: %s has no entry %d", l.shard, l.node, i+1))
				break
			}
			if e.Index != other.Index || e.Term != other.Term || !bytes.Equal(e.Data, other.Data) {
				violations = append(violations, fmt.Sprintf("shard %d: entry %d of %s and %s differ", l.shard, e.Index, l.node, best.node))
				break
			}
		}
	}
	return violations
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
