package node

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/node/shard"
	"github.com/holdfastdb/holdfast/rpc/raftnet"
)

// confirmer asks the other nodes whether terms are still the newest, for all reads of all groups that wait: one question to
// each node at a time, which carries everything that gathered while the one before was under way.
type confirmer struct {
	self string
	ask  func(ctx context.Context, nodeID string, queries []raftnet.TermQuery) ([]uint64, error)

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup // the lanes that are busy

	mu    sync.Mutex
	lanes map[string]*confirmLane // by node
}

func newConfirmer(self string, ask func(ctx context.Context, nodeID string, queries []raftnet.TermQuery) ([]uint64, error)) *confirmer {
	c := &confirmer{self: self, ask: ask, lanes: make(map[string]*confirmLane)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// close ends the calls under way and returns when nothing runs any more.
func (c *confirmer) close() {
	c.mu.Lock()
	c.stop()
	c.mu.Unlock() // no lane begins after this
	c.work.Wait()
}

// confirmLane is the questions for one node: each once, with all who want to know. What a node that is silent is asked next
// does not grow with the reads that wait for it.
type confirmLane struct {
	busy    bool
	queries []raftnet.TermQuery
	places  map[raftnet.TermQuery]int // in queries and askers
	askers  [][]chan<- termAnswer
}

func (l *confirmLane) add(q raftnet.TermQuery, answer chan<- termAnswer) {
	place, asked := l.places[q]
	if !asked {
		if l.places == nil {
			l.places = make(map[raftnet.TermQuery]int)
		}
		place = len(l.queries)
		l.places[q] = place
		l.queries, l.askers = append(l.queries, q), append(l.askers, nil)
	}
	l.askers[place] = append(l.askers[place], answer)
}

// next takes out what waits.
func (l *confirmLane) next() (queries []raftnet.TermQuery, askers [][]chan<- termAnswer) {
	queries, askers = l.queries, l.askers
	l.queries, l.places, l.askers = nil, nil, nil
	return queries, askers
}

type termAnswer struct {
	term uint64
	err  error
}

// confirmTimeout bounds the wait for one answer.
const confirmTimeout = 2 * time.Second

// confirm returns nil if a majority of the voters, this replica included, know no newer term. All answers that count
// were given after confirm was called.
func (c *confirmer) confirm(ctx context.Context, check shard.TermCheck) error {
	answers := make(chan termAnswer, len(check.Voters))
	asked, needed := 0, len(check.Voters)/2+1
	for _, voter := range check.Voters {
		if voter == check.Self {
			needed--
			continue
		}
		asked++
		node, _, _ := strings.Cut(voter, "/")
		c.enqueue(node, raftnet.TermQuery{Group: check.Group, Replica: voter}, answers)
	}
	var failure error
	for needed > 0 {
		if asked < needed {
			return fmt.Errorf("no majority confirms term %d of group %d: %w", check.Term, check.Group, failure)
		}
		select {
		case a := <-answers:
			asked--
			switch {
			case a.err != nil:
				failure = a.err
			case a.term == check.Term:
				needed--
			default:
				failure = fmt.Errorf("a replica is in term %d", a.term)
			}
		case <-ctx.Done():
			return fmt.Errorf("confirm term %d of group %d: %w", check.Term, check.Group, ctx.Err())
		}
	}
	return nil
}

func (c *confirmer) enqueue(node string, q raftnet.TermQuery, answer chan<- termAnswer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		answer <- termAnswer{err: fsm.ErrClosed} // has room for every voter's answer
		return
	}
	l := c.lanes[node]
	if l == nil {
		l = &confirmLane{}
		c.lanes[node] = l
	}
	l.add(q, answer)
	if !l.busy {
		l.busy = true
		c.work.Go(func() { c.run(node, l) }) // ends when nothing waits; each call has a deadline
	}
}

func (c *confirmer) run(node string, l *confirmLane) {
	for {
		c.mu.Lock()
		queries, askers := l.next()
		l.busy = len(queries) > 0
		c.mu.Unlock()
		if len(queries) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(c.ctx, confirmTimeout)
		terms, err := c.ask(ctx, node, queries)
		cancel()
		for i := range queries {
			a := termAnswer{err: err}
			if err == nil {
				a.term = terms[i]
			}
			for _, asker := range askers[i] {
				asker <- a
			}
		}
	}
}
