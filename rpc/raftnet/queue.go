package raftnet

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"
)

// errQueueFull: the other node does not take what is sent to it.
var errQueueFull = errors.New("too much is waiting to be sent")

// queue collects frames for one stream; its writer sends all that wait in one message, so that a busy stream needs few.
type queue struct {
	mu     sync.Mutex
	buf    []byte
	closed bool
	timed  bool // the time of a patient frame runs
	wake   chan struct{}
	// patience is how long a heartbeat may wait for those of other groups. Raft sends one for each group ten times in
	// a heartbeat timeout; alone in their messages they would be most of what idle nodes do.
	patience time.Duration
}

const (
	// maxQueued bounds what waits for one stream.
	maxQueued = 32 << 20
	// maxBody bounds one frame.
	maxBody = maxQueued - 64<<10
	// maxMessage is what gRPC may receive at once: a full queue and one frame more. A message above it would end the
	// stream, and be sent again on the next.
	maxMessage = 2 * maxQueued
)

func newQueue(patience time.Duration) *queue {
	return &queue{wake: make(chan struct{}, 1), patience: patience}
}

// push adds a frame, to be sent at once.
func (q *queue) push(f *frame) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.add(f); err != nil {
		return err
	}
	q.poke()
	return nil
}

// pushPatient adds a frame that may wait for others.
func (q *queue) pushPatient(f *frame) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.add(f); err != nil {
		return err
	}
	if !q.timed {
		q.timed = true
		time.AfterFunc(q.patience, q.poke)
	}
	return nil
}

func (q *queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) add(f *frame) error {
	if q.closed {
		return ErrClosed
	}
	if len(f.body) > maxBody {
		return errTooLarge
	}
	if len(q.buf) > maxQueued {
		return errQueueFull
	}
	if len(q.buf) == 0 {
		q.buf = append(q.buf, formatVersion)
	}
	q.buf = f.append(q.buf)
	return nil
}

func (q *queue) take() []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.buf
	q.timed = false
	q.buf = nil // gRPC keeps the message until it is written
	return b
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
}

// write sends what is pushed until ctx ends or sending fails.
func (q *queue) write(ctx context.Context, send func(any) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-q.wake:
			runtime.Gosched() // whoever is about to push goes first: one message for all
			if b := q.take(); len(b) > 0 {
				if err := send(&b); err != nil {
					return err
				}
			}
		}
	}
}
