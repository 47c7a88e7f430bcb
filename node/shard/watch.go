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
// others: what a Query tells was watched before. f must not block. When the replica receives a state whole, f is called
// without events: those of the entries in it are not told.
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

// gap tells that events are missing. The caller has the turn.
func (m *machine) gap() {
	a := m.Applied()
	for _, w := range m.watchers {
		w.told(a.Index, a.Time, nil)
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
