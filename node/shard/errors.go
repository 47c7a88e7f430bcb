package shard

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
)

// fromRaft classifies what raft.Apply's future said. Only these three tell that the entry was not appended; storage
// errors and lost leadership may leave it in the log.
func fromRaft(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", fsm.ErrNotLeader, err)
	default:
		return fmt.Errorf("%w: %w", fsm.ErrOutcomeUnknown, err)
	}
}
