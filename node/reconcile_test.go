package node

import (
	"testing"

	"github.com/holdfastdb/holdfast/fsm/catalog"
)

// Only the first replica, as long as it is the only one there ever was, makes a group. A replica that has lost its log must
// not make a second one.
func TestOnlyTheFirstReplicaMakesAGroup(t *testing.T) {
	first := catalog.Replica{Node: "a", Gen: 1, Role: catalog.Voter}
	second := catalog.Replica{Node: "b", Gen: 2, Role: catalog.Learner}
	for name, tt := range map[string]struct {
		s     catalog.Shard
		makes bool
	}{
		"new":                {catalog.Shard{ID: 1, Epoch: 1, Replicas: []catalog.Replica{first}}, true},
		"a second was added": {catalog.Shard{ID: 1, Epoch: 2, Replicas: []catalog.Replica{first, second}}, false},
		"the second is gone": {catalog.Shard{ID: 1, Epoch: 3, Replicas: []catalog.Replica{first}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := makesGroup(&tt.s); got != tt.makes {
				t.Errorf("makes the group: %v", got)
			}
		})
	}
}
