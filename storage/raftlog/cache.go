package raftlog

import "github.com/hashicorp/raft"

// cache holds the newest entries, without gaps, up to a number of bytes: what followers and the state machine read next.
// Unlike raft.LogCache it counts bytes and survives compaction.
type cache struct {
	limit, size int
	first       uint64 // index of entries[0]
	entries     []*raft.Log
}

func entrySize(l *raft.Log) int { return len(l.Data) + len(l.Extensions) + 96 }

func (c *cache) get(index uint64) *raft.Log {
	if i := index - c.first; index >= c.first && i < uint64(len(c.entries)) {
		return c.entries[i]
	}
	return nil
}

// add appends an entry; one that does not follow the last starts the cache anew. The entry's bytes are kept, as Raft
// itself keeps them: they never change.
func (c *cache) add(l *raft.Log) {
	switch next := c.first + uint64(len(c.entries)); {
	case len(c.entries) == 0 || l.Index > next:
		c.reset(l.Index)
	case l.Index < next:
		c.cut(l.Index)
		if len(c.entries) == 0 {
			c.reset(l.Index)
		}
	}
	entry := *l
	c.entries = append(c.entries, &entry)
	c.size += entrySize(l)
	for c.size > c.limit && len(c.entries) > 1 {
		c.size -= entrySize(c.entries[0])
		c.entries[0] = nil
		c.entries = c.entries[1:]
		c.first++
	}
}

func (c *cache) reset(first uint64) { c.first, c.size, c.entries = first, 0, nil }

// cut forgets the entries from index on.
func (c *cache) cut(index uint64) {
	for len(c.entries) > 0 && c.first+uint64(len(c.entries))-1 >= index {
		last := len(c.entries) - 1
		c.size -= entrySize(c.entries[last])
		c.entries[last] = nil
		c.entries = c.entries[:last]
	}
}
