package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/fsm/session"
	"github.com/holdfastdb/holdfast/storage"
)

// bytesPerCounter is what each of a million counters takes on disk.
func bytesPerCounter(ctx context.Context, dir string) (float64, error) {
	return bytesStored(ctx, filepath.Join(dir, "counters"), counter.Type(), counter.OpTake, func(i int) []byte {
		q := counter.TakeRequest{Weight: 1, Limits: []counter.Limit{{
			Policy: 1, Params: counter.Params{Algorithm: counter.TokenBucket, Rate: 100, Burst: 100, Window: 3_600_000},
		}}}
		sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
		copy(q.Limits[0].Key[:], sum[:])
		return q.Append(nil)
	})
}

// bytesPerSession is what each of a million logins takes on disk.
func bytesPerSession(ctx context.Context, dir string) (float64, error) {
	const hour = 3600 * 1000
	return bytesStored(ctx, filepath.Join(dir, "sessions"), session.Type(), session.OpCreate, func(i int) []byte {
		sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
		q := session.CreateRequest{
			User: session.NewUserKey(binary.BigEndian.Uint16(sum[:]), strconv.Itoa(i)), Kind: session.Web, Idle: hour / 2, Life: 12 * hour,
			Access: sum, Device: binary.BigEndian.Uint64(sum[8:]),
			Profile: append(sum[:], strings.Repeat("p", 40)...), // a name, a device and an address, of which half cannot be compressed
		}
		return q.Append(nil)
	})
}

// bytesStored applies a million commands to a state machine on disk and measures what each takes after compaction.
func bytesStored(ctx context.Context, dir string, typ fsm.Type, op uint8, request func(i int) []byte) (float64, error) {
	const commands, batch = 1_000_000, 500
	engine, err := storage.Open(storage.Options{Dir: dir})
	if err != nil {
		return 0, err
	}
	defer engine.Close()
	registry, err := fsm.New(typ)
	if err != nil {
		return 0, err
	}
	shard := engine.Shard(1)
	machine, err := fsm.Open(registry, shard)
	if err != nil {
		return 0, err
	}
	const start = 1_700_000_000_000
	for i := 0; i < commands; i += batch {
		f := fsm.Frame{Calls: make([]fsm.Call, batch)}
		for j := range f.Calls {
			f.Calls[j] = fsm.Call{Type: typ.ID, Op: op, Body: request(i + j)}
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
	return float64(size) / commands, err
}
