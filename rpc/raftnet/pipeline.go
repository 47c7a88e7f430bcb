package raftnet

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/plant"
)

// pipelineDepth is how many appends may be under way: the follower writes one while the next is on its way. More would
// only make the queue in front of its disk longer.
const pipelineDepth = 4

// pipeline sends appends without waiting for the answers. It never blocks for ever, and when an append fails it ends
// without a word to Raft about that append: Raft would take a failed future for a sign of life.
type pipeline struct {
	g      *GroupTransport
	target raft.ServerID
	slots  chan struct{}      // one for each append under way
	queue  chan *appendFuture // in the order of sending, for the goroutine that waits for answers
	ready  chan raft.AppendFuture
	done   chan struct{}
	once   sync.Once
}

// AppendEntriesPipeline implements raft.Transport.
func (g *GroupTransport) AppendEntriesPipeline(id raft.ServerID, _ raft.ServerAddress) (raft.AppendPipeline, error) {
	p := &pipeline{
		g: g, target: id,
		slots: make(chan struct{}, pipelineDepth), queue: make(chan *appendFuture, pipelineDepth),
		ready: make(chan raft.AppendFuture, pipelineDepth), done: make(chan struct{}),
	}
	if !g.n.spawn(p.collect) { // ends with Close, which Raft calls, or with the Net
		return nil, ErrClosed
	}
	return p, nil
}

// appendFuture implements raft.AppendFuture. It is done before Raft sees it.
type appendFuture struct {
	start   time.Time
	request *raft.AppendEntriesRequest
	answer  *raft.AppendEntriesResponse
	call    *call
}

func (f *appendFuture) Error() error                          { return nil }
func (f *appendFuture) Start() time.Time                      { return f.start }
func (f *appendFuture) Request() *raft.AppendEntriesRequest   { return f.request }
func (f *appendFuture) Response() *raft.AppendEntriesResponse { return f.answer }

// AppendEntries implements raft.AppendPipeline.
func (p *pipeline) AppendEntries(q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	t := time.NewTimer(appendTimeout)
	defer t.Stop()
	select {
	case p.slots <- struct{}{}:
	case <-p.done:
		return nil, raft.ErrPipelineShutdown
	case <-t.C:
		return nil, errTimeout
	}
	select {
	case <-p.done: // a select with several ready cases picks any
		return nil, raft.ErrPipelineShutdown
	default:
	}
	if appendBytes(q) > maxPiece { // outside of the pipeline it goes in pieces
		_ = p.Close()
		return nil, errTooLarge
	}
	f := &appendFuture{start: time.Now(), request: q, answer: a}
	var err error
	if f.call, err = p.g.start(p.target, q); err != nil {
		_ = p.Close()
		return nil, err
	}
	p.queue <- f // has room: there are as many slots
	if plant.On(plant.AckBeforeQuorum) {
		select {
		case p.ready <- &appendFuture{start: f.start, request: q, answer: &raft.AppendEntriesResponse{Term: q.Term, Success: true}}:
		default:
		}
	}
	return f, nil
}

// collect waits for the answers in order.
func (p *pipeline) collect() {
	defer func() { _ = p.Close() }()
	for {
		select {
		case <-p.done:
			return
		case <-p.g.n.ctx.Done():
			return
		case f := <-p.queue:
			body, err := f.call.wait(appendTimeout, p.done, p.g.closed())
			if err == nil {
				err = decodeAnswer(body, f.answer)
			}
			if err != nil {
				return
			}
			select {
			case p.ready <- f:
				<-p.slots
			case <-p.done:
				return
			case <-p.g.n.ctx.Done():
				return
			}
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.ready }

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}
