package shard

import (
	"slices"

	"github.com/holdfastdb/holdfast/fsm"
)

// watcher is told of events.
type watcher struct {
	told func(index uint64, at fsm.Time, events []fsm.Event)
}

// Watch calls f for each entry applied from now on whose commands emitted events, in order and before the position moves for
// others: what a Query tells was watched before. f must not block. A replica that receives a state whole tells nothing of
// the entries in it, and is no leader then.
func (g *Group) Watch(f func(index uint64, at fsm.Time, events []fsm.Event)) (stop func()) {
	m, w := g.machine, &watcher{f}
	m.turn.Lock()
	m.watchers = append(m.watchers, w)
	m.turn.Unlock()
	return func() {
		m.turn.Lock()
		m.watchers = slices.DeleteFunc(m.watchers, func(x *watcher) bool { return x == w })
		m.turn.Unlock()
	}
}

// tell hands out events. The caller has the turn.
func (m *machine) tell(outcomes []fsm.Outcome) {
	for i := range outcomes {
		if o := &outcomes[i]; len(o.Events) > 0 {
			for _, w := range m.watchers {
				w.told(o.Index, o.Time, o.Events)
			}
		}
	}
}
