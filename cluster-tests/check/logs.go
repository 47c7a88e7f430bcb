package check

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
)

// Agreement compares the committed logs of a shard's replicas: at the same index all have the same entry.
func Agreement(shard uint32, replicas map[string][]Entry) []Violation {
	_, violations := Merge(shard, replicas)
	return violations
}

// Merge makes one log of what the replicas of a shard hold, of which each may have lost its beginning or be behind, and
// tells where they differ.
func Merge(shard uint32, replicas map[string][]Entry) (log []Entry, violations []Violation) {
	type held struct {
		Entry
		by string
	}
	first := make(map[uint64]held)
	for _, name := range sortedNames(replicas) {
		before := uint64(0)
		for _, e := range replicas[name] {
			if before != 0 && e.Index != before+1 {
				violations = append(violations, Violation{Kind: KindLog, Detail: fmt.Sprintf("shard %d: entry %d comes after entry %d on %s", shard, e.Index, before, name)})
			}
			before = e.Index
			h, seen := first[e.Index]
			if !seen {
				first[e.Index] = held{e, name}
				log = append(log, e)
				continue
			}
			if h.Term != e.Term || h.Type != e.Type || !bytes.Equal(h.Data, e.Data) {
				violations = append(violations, Violation{Kind: KindAgreement, Detail: fmt.Sprintf(
					"shard %d: entry %d is of term %d, %d bytes, type %d on %s and of term %d, %d bytes, type %d on %s",
					shard, e.Index, h.Term, len(h.Data), h.Type, h.by, e.Term, len(e.Data), e.Type, name)})
			}
		}
	}
	slices.SortFunc(log, func(a, b Entry) int { return int(a.Index) - int(b.Index) })
	return log, violations
}

// Stamped says of each entry that it was decided when it was stamped, in a history that began then: where all leaders have
// the callers' clock.
func Stamped(log []Entry, begin time.Time) []Entry {
	log = slices.Clone(log)
	for i := range log {
		if log[i].Type != raft.LogCommand || len(log[i].Data) == 0 {
			continue
		}
		if e, err := fsm.DecodeEntry(log[i].Data); err == nil { // else it is found when it is executed
			log[i].Told = time.UnixMilli(int64(e.Time)).Sub(begin)
		}
	}
	return log
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Change is what one follower of a feed was told.
type Change struct {
	Revision uint64
	// Value is what changed, comparable with ==.
	Value any
	// Whole says that the follower read everything instead, as of Revision: what came between, it knows.
	Whole bool
}

// Watches judges what followers of one feed saw, each in its order: no change is missed, none comes again or too late, and
// all see the same.
func Watches(followers map[string][]Change) (violations []Violation) {
	add := func(format string, args ...any) {
		violations = append(violations, Violation{Kind: KindWatch, Detail: fmt.Sprintf(format, args...)})
	}
	values := make(map[uint64]any)
	for _, name := range sortedNames(followers) {
		var at uint64
		begun := false
		for _, c := range followers[name] {
			switch {
			case c.Whole && c.Revision < at:
				add("%s steps back from revision %d to %d", name, at, c.Revision)
			case !c.Whole && begun && c.Revision <= at:
				add("%s is told of revision %d after %d", name, c.Revision, at)
			case !c.Whole && begun && c.Revision != at+1:
				add("%s misses the revisions between %d and %d", name, at, c.Revision)
			}
			at, begun = max(at, c.Revision), true
			if c.Whole {
				continue
			}
			if value, seen := values[c.Revision]; !seen {
				values[c.Revision] = c.Value
			} else if value != c.Value {
				add("revision %d is %v for %s and %v for another", c.Revision, c.Value, name, value)
			}
		}
	}
	return violations
}

// Sum judges a counter by its end: it has all that was acknowledged, and each operation of unknown outcome once or not at
// all.
func Sum(what string, counted, definite, unknown uint64) []Violation {
	var detail string
	switch {
	case counted < definite:
		detail = fmt.Sprintf("%s: %d acknowledged operations are lost: %d counted, %d acknowledged", what, definite-counted, counted, definite)
	case counted > definite+unknown:
		detail = fmt.Sprintf("%s: %d operations are doubled: %d counted, %d acknowledged, %d unknown", what, counted-definite-unknown, counted, definite, unknown)
	default:
		return nil
	}
	return []Violation{{Kind: KindSum, Detail: detail}}
}
