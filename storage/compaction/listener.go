package compaction

import "github.com/cockroachdb/pebble/v2"

// Listener tells when a flush or a compaction begins, with true, and when it ends. on must not block: Pebble calls it with its
// locks held.
func Listener(on func(begins bool)) *pebble.EventListener {
	return &pebble.EventListener{
		FlushBegin:      func(pebble.FlushInfo) { on(true) },
		FlushEnd:        func(pebble.FlushInfo) { on(false) },
		CompactionBegin: func(pebble.CompactionInfo) { on(true) },
		CompactionEnd:   func(pebble.CompactionInfo) { on(false) },
	}
}
