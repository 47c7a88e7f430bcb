package node

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/node/shard"
	"github.com/holdfastdb/holdfast/rpc/raftnet"
)

// confirmer asks the other nodes whether terms are still the newest, for all reads of all groups that wait: one call to
// each node at a time, which carries everything that gathered while the one before was under way.
type confirmer struct {
	self string
	ask  func(ctx context.Context, nodeID string, queries []raftnet.TermQuery) ([]uint64, error)

	mu    sync.Mutex
	lanes map[string]*confirmLane // by node
}

// confirmLane is the questions for one node.
type confirmLane struct {
	busy    bool
	waiting []question
}

type question struct {
	query  raftnet.TermQuery
	answer chan<- termAnswer
}

type termAnswer struct {
	term uint64
	err  error
}

// confirmTimeout bounds one call.
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
		c.enqueue(node, question{raftnet.TermQuery{Group: check.Group, Replica: voter}, answers})
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

func (c *confirmer) enqueue(node string, q question) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lanes == nil {
		c.lanes = make(map[string]*confirmLane)
	}
	l := c.lanes[node]
	if l == nil {
		l = &confirmLane{}
		c.lanes[node] = l
	}
	l.waiting = append(l.waiting, q)
	if !l.busy {
		l.busy = true
		go c.run(node, l) // ends when nothing waits; each call has a deadline
	}
}

func (c *confirmer) run(node string, l *confirmLane) {
	for {
		c.mu.Lock()
		batch := l.waiting
		l.waiting = nil
		l.busy = len(batch) > 0
		c.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		queries := make([]raftnet.TermQuery, len(batch))
		for i := range batch {
			queries[i] = batch[i].query
		}
		ctx, cancel := context.WithTimeout(context.Background(), confirmTimeout)
		terms, err := c.ask(ctx, node, queries)
		cancel()
		for i := range batch {
			a := termAnswer{err: err}
			if err == nil {
				a.term = terms[i]
			}
			batch[i].answer <- a // has room for every voter's answer
		}
	}
}
