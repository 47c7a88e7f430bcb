package disk

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// openLog opens the log of group 1 on a file system, as a process on the disk does.
func openLog(t *testing.T, d *Disk, fs vfs.FS) (raftlog.Log, func()) {
	t.Helper()
	p, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "raft", OnFatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	l, err := d.Logs(p).Open(1)
	if err != nil {
		t.Fatal(err)
	}
	return l, func() {
		if err := errors.Join(l.Close(), p.Close()); err != nil {
			t.Error(err)
		}
	}
}

func fill(t *testing.T, l raftlog.Log) {
	t.Helper()
	for index := uint64(1); index <= 5; index++ {
		if err := l.StoreLog(&raft.Log{Index: index, Term: 3}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.SetUint64([]byte(keyTerm), 3), l.SetUint64([]byte(raftlog.KeyVoteTerm), 3),
		l.Set([]byte(raftlog.KeyVoteCandidate), []byte("n1/1")), l.DeleteRange(5, 5)); err != nil {
		t.Fatal(err)
	}
}

// What logs said is stored is looked for after a restart; what was deleted, or only half said, is not.
func TestABrokenPromiseIsFound(t *testing.T) {
	d := New()
	l, end := openLog(t, d, d)
	fill(t, l)
	if err := l.SetUint64([]byte(raftlog.KeyVoteTerm), 4); err != nil {
		t.Fatal(err)
	}
	end()
	d = d.Crash(0, nil)
	_, end = openLog(t, d, d)
	end()
	if lost := d.Lost(); len(lost) > 0 {
		t.Fatalf("nothing is lost, and found: %v", lost)
	}
	_, end = openLog(t, d, vfs.NewMem()) // everything is
	end()
	text := errors.Join(d.Lost()...).Error()
	for _, what := range []string{"term 3 was stored", "the vote {3 n1/1} was stored", "entries up to 4 were stored"} {
		if !strings.Contains(text, what) {
			t.Errorf("%q is not found: %s", what, text)
		}
	}
}

func TestThePowerIsCutAtTheWriteThatWasAskedFor(t *testing.T) {
	d := New()
	l, end := openLog(t, d, d)
	defer end()
	var at []string
	d.CutAt(Entries, 3, func() {
		last, err := l.LastIndex()
		if err != nil || last != 3 {
			t.Errorf("the power is cut at entry %d, %v", last, err)
		}
		at = append(at, "entry")
	})
	fill(t, l)
	d.CutAt(Votes, 2, func() { at = append(at, "vote") }) // its halves are two
	if err := errors.Join(l.SetUint64([]byte(raftlog.KeyVoteTerm), 4), l.Set([]byte(raftlog.KeyVoteCandidate), []byte("n2/1"))); err != nil {
		t.Fatal(err)
	}
	d.CutAt(Entries, 1, nil)
	fill(t, l)
	if strings.Join(at, ", ") != "entry, vote" {
		t.Errorf("the power was cut at %v", at)
	}
}

// Several ask at the same time what is durable, and one of them notes it: none may go on before it is noted.
func TestWhatIsSaidToBeDurableIsPromised(t *testing.T) {
	d := New()
	l, end := openLog(t, d, d)
	defer end()
	durability := l.Defer()
	for index := uint64(1); index <= 1000; index++ {
		if err := l.StoreLog(&raft.Log{Index: index, Term: 1, Type: raft.LogCommand}); err != nil {
			t.Fatal(err)
		}
		var asking sync.WaitGroup
		for range 8 {
			asking.Go(func() {
				for durability.Durable() < index {
					runtime.Gosched()
				}
				d.Applied(1, index)
			})
		}
		asking.Wait()
	}
	if lost := d.Lost(); len(lost) > 0 {
		t.Errorf("%d times, first: %v", len(lost), lost[0])
	}
}
