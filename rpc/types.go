package rpc

import (
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// Types is THE list of data types that shards hold.
func Types() []fsm.Type {
	return []fsm.Type{
		counter.Type(),
	}
}
