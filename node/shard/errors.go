package shard

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// The errors of a group. After the first three nothing happened and nothing will; they are safe to try again, there or
// elsewhere.
var (
	// ErrNotLeader: this replica does not lead, or not for long enough.
	ErrNotLeader = errors.New("this node does not lead the shard")
	// ErrOverloaded: the queue is full; wait before trying again.
	ErrOverloaded = errors.New("the shard's queue is full")
	// ErrClosed: the group is stopping.
	ErrClosed = errors.New("the shard is closed on this node")
	// ErrOutcomeUnknown: the command may have been executed, or may be later. The same frame may be sent again.
	ErrOutcomeUnknown = errors.New("outcome unknown: the command may have been executed")
)

// Safe reports that err tells of a command that had no effect and will have none.
func Safe(err error) bool {
	return errors.Is(err, ErrNotLeader) || errors.Is(err, ErrOverloaded) || errors.Is(err, ErrClosed)
}

// fromRaft classifies what raft.Apply's future said. Only these three tell that the entry was not appended; storage
// errors and lost leadership may leave it in the log.
func fromRaft(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	default:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
}
