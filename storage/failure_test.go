package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/storagetest"
)

// After an error of the disk nobody knows what is on it: the process ends, or the call that failed says so and has changed
// nothing. What was synced is there, and a shard is never half of what was installed.
func TestAFailingDiskEndsTheProcessBeforeAnythingIsLost(t *testing.T) {
	storagetest.TestFailures(t, storagetest.Writes, lives(t))
}

// What cannot be read is not missing.
func TestWhatCannotBeReadIsToldAsAnError(t *testing.T) {
	storagetest.TestFailures(t, storagetest.Reads, lives(t))
}

// life is that of a node with three shards. The first is written, compacted and exported, the content of the second is
// replaced by what a leader sends, and the third is removed. At last the node is restarted. As a node does, it goes on when
// something has failed and the process has not ended.
type life struct {
	t      *testing.T
	stream []byte // the new content of the second shard
	ended  bool   // a commit has failed, which no replica survives
	shards [3]*storagetest.History
}

func lives(t *testing.T) func(*testing.T) storagetest.Life {
	source := open(t, vfs.NewMem()).Shard(1)
	set(t, source, "a", "new", "b", "new")
	stream := exported(t, source)
	return func(t *testing.T) storagetest.Life {
		l := &life{t: t, stream: stream}
		for i := range l.shards {
			l.shards[i] = storagetest.NewHistory()
		}
		return l
	}
}

func openOn(disk vfs.FS, fatal func(error)) (*Engine, error) {
	return Open(Options{FS: disk, Dir: "state", MemTableBytes: 64 << 10, CacheBytes: 1 << 20, OnFatal: fatal})
}

func (l *life) Run(disk vfs.FS, fatal func(error)) error {
	e, err := openOn(disk, fatal)
	if err != nil {
		return err
	}
	err = errors.Join(l.fill(e), e.Shard(0).Compact(context.Background()), l.commit(e, 2), l.install(e.Shard(1)),
		l.export(e.Shard(0)), l.commit(e, 3), l.destroy(e.Shard(2)), l.look(e))
	if err := errors.Join(err, e.Close()); err != nil {
		return err
	}
	if e, err = openOn(disk, fatal); err != nil {
		return err
	}
	return errors.Join(l.look(e), l.commit(e, 4), l.look(e), e.Close())
}

// fill writes the first content of all shards.
func (l *life) fill(e *Engine) error {
	var acknowledge []func()
	for i := range uint32(2) {
		acknowledge = append(acknowledge, l.shards[1+i].Change(func(c map[string]string) { c["a"], c["c"] = "old", "old" }))
		b := e.Shard(1 + i).NewBatch()
		b.Set([]byte("a"), []byte("old"))
		b.Set([]byte("c"), []byte("old"))
		if err := written(b); err != nil {
			return err
		}
	}
	if err := l.commit(e, 1); err != nil {
		return err
	}
	for _, of := range acknowledge { // the sync was for all shards
		of()
	}
	return nil
}

// commit writes rows to the first shard, reads the row before each, as a state machine does, and syncs them.
func (l *life) commit(e *Engine, n int) (err error) {
	if l.ended {
		return nil
	}
	defer func() { l.ended = err != nil }()
	var acknowledge func()
	for i := range 3 {
		row := fmt.Sprintf("row %d.%d", n, i)
		acknowledge = l.shards[0].Change(func(c map[string]string) { c[row], c["last"] = described(make([]byte, 8<<10)), row })
		b := e.Shard(0).NewBatch()
		switch _, err := b.Get([]byte("last")); {
		case errors.Is(err, kv.ErrNotFound):
			if n != 1 || i != 0 {
				l.t.Errorf("before %s there is none", row)
			}
		case err != nil:
			return errors.Join(err, b.Close())
		}
		b.Set([]byte(row), make([]byte, 8<<10))
		b.Set([]byte("last"), []byte(row))
		if err := written(b); err != nil {
			return err
		}
	}
	if err := e.Sync(); err != nil {
		return err
	}
	acknowledge()
	return nil
}

func (l *life) install(s *Shard) error {
	acknowledge := l.shards[1].Change(func(c map[string]string) {
		clear(c)
		c["a"], c["b"] = "new", "new"
	})
	in, err := s.NewInstall()
	if err != nil {
		return err
	}
	if _, err = in.Write(l.stream); err == nil {
		err = in.Finish()
	}
	if errors.Is(err, ErrCorrupt) {
		l.t.Errorf("what was received is not damaged: %v", err)
	}
	if err == nil {
		err = in.Apply()
	}
	if err == nil {
		acknowledge()
	}
	return errors.Join(err, in.Discard())
}

// export reads the stream of a shard as a follower would, whose disk is good.
func (l *life) export(s *Shard) error {
	x, err := s.Export(context.Background(), func(kv.Reader) error { return nil })
	if err != nil {
		return err
	}
	stream, err := io.ReadAll(x)
	if err := errors.Join(err, x.Close()); err != nil {
		return err
	}
	to, err := openOn(vfs.NewMem(), func(err error) { panic(err) })
	if err != nil {
		return err
	}
	defer to.Close()
	if err := install(l.t, to.Shard(0), stream); err != nil {
		l.t.Errorf("a stream that was sent whole: %v", err)
		return nil
	}
	held, err := held(to.Shard(0))
	if err := errors.Join(err, l.shards[0].Check(held, l.shards[0].Acknowledged())); err != nil {
		l.t.Errorf("in the stream: %v", err)
	}
	return nil
}

func (l *life) destroy(s *Shard) error {
	acknowledge := l.shards[2].Change(func(c map[string]string) { clear(c) })
	if err := s.Destroy(); err != nil {
		return err
	}
	acknowledge()
	return nil
}

// look reads all shards within the process.
func (l *life) look(e *Engine) error {
	for i, h := range l.shards {
		held, err := held(e.Shard(uint32(i)))
		if err != nil {
			return err
		}
		if err := h.Check(held, h.Acknowledged()); err != nil {
			l.t.Errorf("shard %d, in the process: %v", i, err)
		}
	}
	return nil
}

func (l *life) Acknowledged() func(left vfs.FS) error {
	var acknowledged []int
	for _, h := range l.shards {
		acknowledged = append(acknowledged, h.Acknowledged())
	}
	return func(left vfs.FS) (err error) {
		e, err := openOn(left, func(err error) { panic(err) })
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, e.Close()) }()
		for i, h := range l.shards {
			held, err := held(e.Shard(uint32(i)))
			if err == nil {
				err = h.Check(held, acknowledged[i])
			}
			if err != nil {
				return fmt.Errorf("shard %d: %w", i, err)
			}
		}
		return nil
	}
}

// held reads all that a shard holds.
func held(s *Shard) (map[string]string, error) {
	v := s.View()
	defer v.Close()
	it, err := v.Iter(nil, nil)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	all := make(map[string]string)
	for it.Next() {
		all[string(it.Key())] = described(it.Value())
	}
	return all, it.Err()
}

func described(value []byte) string {
	if len(value) < 100 {
		return string(value)
	}
	return fmt.Sprint(len(value), " bytes")
}
