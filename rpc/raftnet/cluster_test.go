package raftnet

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A node that was away is sent more bytes of entries than one message holds, and a node that joins gets the state.
func TestNodesCatchUpOnLargeEntriesAndJoin(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	for _, n := range []*node{a, c} {
		n.startRaft(t, "a", "c", "late")
	}
	l := leader(t, a, c)
	for i := range 12 {
		word := strings.Repeat(string(rune('a'+i)), 3*maxPiece/16)
		eventually(t, "a large entry", func() bool {
			l = leader(t, a, c)
			return l.raft.Apply([]byte(word), 10*time.Second).Error() == nil
		})
	}
	late := startNode(t, b, "late", Config{})
	defer late.close()
	late.startRaft(t, "a", "c", "late")
	eventually(t, "the late node has everything", func() bool { return late.fsm.text() == l.fsm.text() })

	joiner := startNode(t, b, "joiner", Config{})
	defer joiner.close()
	joiner.startRaft(t)
	// On a slow machine leadership moves: each step asks who leads then.
	for _, n := range []*node{a, c, late} {
		if err := n.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a node joins", func() bool {
		l = leader(t, a, c, late, joiner)
		return l.raft.AddVoter("joiner/1", "joiner/1", 0, 10*time.Second).Error() == nil
	})
	eventually(t, "a last word", func() bool {
		l = leader(t, a, c, late, joiner)
		return l.raft.Apply([]byte("end"), 10*time.Second).Error() == nil
	})
	eventually(t, "the joining node has everything", func() bool { return joiner.fsm.text() == l.fsm.text() })
	if len(joiner.fsm.text()) < 12*3*maxPiece/16 {
		t.Fatalf("the joining node has %d bytes", len(joiner.fsm.text()))
	}
	if snaps, err := joiner.snaps.List(); err != nil || len(snaps) == 0 {
		t.Fatalf("the joining node got no state: %v", err)
	}

	// Leadership moves on request.
	eventually(t, "the joining node leads", func() bool {
		l = leader(t, a, c, late, joiner)
		return l == joiner || l.raft.LeadershipTransferToServer("joiner/1", "joiner/1").Error() == nil && joiner.raft.State() == raft.Leader
	})
}

// What is too much for one message leaves the pipeline, and Raft sends it outside.
func TestAPipelineRefusesWhatGoesInPieces(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a := startNode(t, b, "a", Config{})
	defer a.close()
	p, err := a.Group(group, "a/1", nil).AppendEntriesPipeline("c/1", "c/1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.AppendEntries(appendOf(1, maxPiece/2, maxPiece/2), &raft.AppendEntriesResponse{}); !errors.Is(err, errTooLarge) {
		t.Fatalf("error %v", err)
	}
	if _, err := p.AppendEntries(appendOf(1, 1), &raft.AppendEntriesResponse{}); !errors.Is(err, raft.ErrPipelineShutdown) {
		t.Fatalf("after the end: %v", err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A heartbeat is answered over the wire though Raft's main loop is at work, and one more term waits for it.
func TestHeartbeatsPassABusyMainLoop(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	from, to := a.Group(group, "a/1", nil), c.Group(group, "c/1", nil)
	to.Attach(fixedState{term: 5, last: 40}) // nobody reads its Consumer
	beat := func(term uint64) (raft.AppendEntriesResponse, error) {
		var answer raft.AppendEntriesResponse
		err := from.AppendEntries("c/1", "c/1", &raft.AppendEntriesRequest{RPCHeader: header, Term: term}, &answer)
		return answer, err
	}
	for range consumerLength {
		if answer, err := beat(5); err != nil || !answer.Success || answer.LastLog != 40 {
			t.Fatalf("answer %+v, %v", answer, err)
		}
	}
	if answer, err := beat(5); !errors.Is(err, errTimeout) {
		t.Fatalf("Raft hears of nothing and answered %+v, %v", answer, err)
	}
	if answer, err := beat(6); !errors.Is(err, errTimeout) {
		t.Fatalf("a new term was answered without Raft: %+v, %v", answer, err)
	}
	if answer, err := beat(4); err != nil || answer.Success || answer.Term != 5 {
		t.Fatalf("an old leader got %+v, %v", answer, err)
	}
}
