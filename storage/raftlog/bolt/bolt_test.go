package bolt

import (
	"encoding/hex"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// Whatever a write left on the disk when it failed is unknown, so the process must stop, as with the other kind of log.
func TestAFailedWriteIsFatal(t *testing.T) {
	var fatal error
	p, err := Open(Options{Dir: t.TempDir(), OnFatal: func(err error) { fatal = err }})
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.StoreLog(&raft.Log{Index: 1, Term: 1}); err != nil || fatal != nil {
		t.Fatalf("a write: %v, fatal: %v", err, fatal)
	}
	if err := l.Close(); err != nil { // the nearest to a disk that fails
		t.Fatal(err)
	}
	if err := l.StoreLog(&raft.Log{Index: 2, Term: 1}); err == nil || fatal == nil {
		t.Errorf("a write to a closed file: %v, fatal: %v", err, fatal)
	}
}

// The vote on the disk must not change: a node must find the votes of an older version.
func TestTheStoredVoteIsPinned(t *testing.T) {
	p, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := p.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if err := opened.SetUint64([]byte(raftlog.KeyVoteTerm), 7); err != nil {
		t.Fatal(err)
	}
	if err := opened.Set([]byte(raftlog.KeyVoteCandidate), []byte("n1/1")); err != nil {
		t.Fatal(err)
	}
	stored, err := opened.(*log).BoltStore.Get([]byte("Vote"))
	if got := hex.EncodeToString(stored); err != nil || got != "00000000000000076e312f31" {
		t.Errorf("the vote is stored as %s, %v", got, err)
	}
}
