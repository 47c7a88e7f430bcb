package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"path/filepath"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/storage"
)

// bytesPerCounter applies takes from a million counters to a state machine on disk and measures what they take after
// compaction.
func bytesPerCounter(ctx context.Context, dir string) (float64, error) {
	const counters, batch = manyCounters, 500
	engine, err := storage.Open(storage.Options{Dir: filepath.Join(dir, "counters")})
	if err != nil {
		return 0, err
	}
	defer engine.Close()
	registry, err := fsm.New(counter.Type())
	if err != nil {
		return 0, err
	}
	shard := engine.Shard(1)
	machine, err := fsm.Open(registry, shard)
	if err != nil {
		return 0, err
	}
	const start = 1_700_000_000_000
	for i := 0; i < counters; i += batch {
		f := fsm.Frame{Calls: make([]fsm.Call, batch)}
		for j := range f.Calls {
			q := counter.TakeRequest{Weight: 1, Limits: []counter.Limit{{
				Policy: 1, Params: counter.Params{Algorithm: counter.TokenBucket, Rate: 100, Burst: 100, Window: 3_600_000},
			}}}
			sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i+j)))
			copy(q.Limits[0].Key[:], sum[:])
			f.Calls[j] = fsm.Call{Type: counter.TypeID, Op: counter.OpTake, Body: q.Append(nil)}
		}
		e := fsm.Entry{Kind: fsm.Commands, Time: fsm.Time(start + i/100), Frames: []fsm.Frame{f}}
		if _, err := machine.Apply([]fsm.LogEntry{{Index: uint64(i/batch + 1), Term: 1, Data: e.Append(nil)}}); err != nil {
			return 0, err
		}
	}
	if err := machine.Flush(); err != nil {
		return 0, err
	}
	if err := shard.Compact(ctx); err != nil {
		return 0, err
	}
	size, err := shard.Size()
	return float64(size) / counters, err
}
