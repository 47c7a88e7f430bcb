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

// The vote on the disk must not change any more: a node must find the votes of an older version.
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
	if got := hex.EncodeToString(stored); err != nil || got != "00000000000000076e312f310a37baad" {
		t.Errorf("the vote is stored as %s, %v", got, err)
	}
}

// What is stored with an entry must not change either. Nobody has to know it but this package.
func TestTheStoredChecksumIsPinned(t *testing.T) {
	l := &log{group: 7}
	e := raft.Log{Index: 301, Term: 5, Type: raft.LogCommand, Data: []byte("data"), Extensions: []byte("ext")}
	sealed := l.seal(&e)
	if got := hex.EncodeToString(sealed.Extensions); got != "65787498a9762a" {
		t.Errorf("the extensions are stored as %s", got)
	}
	if err := l.open(301, &sealed); err != nil || string(sealed.Extensions) != "ext" {
		t.Errorf("they are read as %q, %v", sealed.Extensions, err)
	}
}
