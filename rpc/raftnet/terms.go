package raftnet

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/holdfastdb/holdfast/storage/wire"
)

// TermQuery asks a replica for its current term.
type TermQuery struct {
	Group   uint32
	Replica string
}

// termsTimeout bounds how long an answer is waited for by a caller who waits longer.
const termsTimeout = 10 * time.Second

// maxQueries is far above how many groups there are; it keeps a forged question from growing in memory.
const maxQueries = 1 << 17

// ConfirmTerms asks a node for the current terms of its replicas; 0 stands for one that is not there. The question goes with
// the heartbeats, and the answer comes without a way through any group's main loop: no slow disk delays a read.
func (n *Net) ConfirmTerms(ctx context.Context, nodeID string, queries []TermQuery) ([]uint64, error) {
	if len(queries) > maxQueries {
		return nil, fmt.Errorf("%w: %d questions", errTooLarge, len(queries))
	}
	sent := time.Now()
	answer, err := n.askTerms(ctx, nodeID, appendTermQueries(nil, queries))
	if err != nil {
		return nil, fmt.Errorf("ask node %s for terms: %w", nodeID, err)
	}
	trip := time.Since(sent)
	at, terms, err := decodeTerms(answer)
	if err != nil {
		return nil, err
	}
	if len(terms) != len(queries) {
		return nil, fmt.Errorf("%w: %d terms for %d questions", wire.ErrCorrupt, len(terms), len(queries))
	}
	// Half of the round trip is what the measurement may be wrong by; a slow one says nothing.
	if trip < 100*time.Millisecond {
		n.mu.Lock()
		n.clocks[nodeID] = reading{wall: at, at: sent.Add(trip / 2)}
		n.mu.Unlock()
	}
	return terms, nil
}

func (n *Net) askTerms(ctx context.Context, nodeID string, question []byte) ([]byte, error) {
	p, err := n.peer(nodeID)
	if err != nil {
		return nil, err
	}
	c, err := p.send(beatConn, &frame{kind: kindTerms, from: n.cfg.NodeID, body: question})
	if err != nil {
		return nil, err
	}
	answer, err := c.wait(termsTimeout, ctx.Done(), n.ctx.Done())
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return answer, err
}

// serveTerms answers ConfirmTerms.
func (n *Net) serveTerms(question []byte) ([]byte, error) {
	queries, err := decodeTermQueries(question)
	if err != nil {
		return nil, err
	}
	terms := make([]uint64, len(queries))
	for i, q := range queries {
		if g, err := n.local(q.Group, q.Replica); err == nil {
			if state := g.state(); state != nil {
				terms[i] = state.CurrentTerm()
			}
		}
	}
	return appendTerms(nil, n.cfg.Clock(), terms), nil
}

func appendTermQueries(dst []byte, queries []TermQuery) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(queries)))
	for _, q := range queries {
		dst = wire.AppendText(binary.AppendUvarint(dst, uint64(q.Group)), q.Replica)
	}
	return dst
}

func decodeTermQueries(b []byte) ([]TermQuery, error) {
	d := wire.NewDecoder(b)
	count := d.Count(2)
	if count > maxQueries {
		return nil, fmt.Errorf("%w: %d questions for terms", wire.ErrCorrupt, count)
	}
	queries := make([]TermQuery, count)
	for i := range queries {
		queries[i] = TermQuery{Group: d.Uint32(), Replica: d.Text()}
	}
	return queries, d.End("questions for terms")
}

func appendTerms(dst []byte, now time.Time, terms []uint64) []byte {
	dst = binary.AppendVarint(dst, now.UnixNano())
	dst = binary.AppendUvarint(dst, uint64(len(terms)))
	for _, t := range terms {
		dst = binary.AppendUvarint(dst, t)
	}
	return dst
}

func decodeTerms(b []byte) (time.Time, []uint64, error) {
	d := wire.NewDecoder(b)
	at := time.Unix(0, d.Varint())
	terms := make([]uint64, d.Count(1))
	for i := range terms {
		terms[i] = d.Uvarint()
	}
	return at, terms, d.End("terms")
}
