package compaction

import "github.com/cockroachdb/pebble/v2"

// Listener tells work when a compaction begins, with true, and when it ends, and flushed of flushes that succeeded.
// work must not block: Pebble calls it with its locks held.
func Listener(work func(begins bool), flushed func()) *pebble.EventListener {
	return &pebble.EventListener{
		FlushEnd: func(info pebble.FlushInfo) {
			if info.Err == nil {
				flushed()
			}
		},
		CompactionBegin: func(pebble.CompactionInfo) { work(true) },
		CompactionEnd:   func(pebble.CompactionInfo) { work(false) },
	}
}
