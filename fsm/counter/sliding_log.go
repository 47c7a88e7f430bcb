package counter

import (
	"encoding/binary"
	"sort"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// slidingLog remembers when each token of the last window was used, and so is exact: no window of that length, wherever
// it starts, holds more than rate tokens. Tokens of the same millisecond share an entry.
type slidingLog struct {
	window  fsm.Millis
	entries []logged // ascending by time; those of leases may lie in the future
	sum     int64
}

type logged struct {
	at fsm.Time
	n  int64
}

func (l *slidingLog) advance(p *Params, now fsm.Time, _ int64) {
	l.window = p.Window
	gone := 0
	for gone < len(l.entries) && l.entries[gone].at+fsm.Time(p.Window) <= now {
		l.sum -= l.entries[gone].n
		gone++
	}
	if gone > 0 {
		l.entries = append(l.entries[:0], l.entries[gone:]...)
	}
}

func (l *slidingLog) free(p *Params) int64 { return int64(p.Rate) - l.sum }

// find returns the place of the entry for at, or where it would be.
func (l *slidingLog) find(at fsm.Time) (int, bool) {
	if n := len(l.entries); n == 0 || l.entries[n-1].at < at {
		return n, false
	}
	i := sort.Search(len(l.entries), func(i int) bool { return l.entries[i].at >= at })
	return i, l.entries[i].at == at
}

func (l *slidingLog) take(at fsm.Time, n int64) {
	if n == 0 {
		return
	}
	i, found := l.find(at)
	if !found {
		l.entries = append(l.entries, logged{})
		copy(l.entries[i+1:], l.entries[i:])
		l.entries[i] = logged{at: at}
	}
	l.entries[i].n += n
	l.sum += n
}

func (l *slidingLog) give(at fsm.Time, n int64) {
	i, found := l.find(at)
	if !found {
		return // it has left the window
	}
	n = min(n, l.entries[i].n)
	l.sum -= n
	if l.entries[i].n -= n; l.entries[i].n == 0 {
		l.entries = append(l.entries[:i], l.entries[i+1:]...)
	}
}

func (l *slidingLog) used(*Params) int64 { return l.sum }

func (l *slidingLog) ready(p *Params, now fsm.Time, n int64, _ []hold) fsm.Time {
	if n > int64(p.Rate) {
		return Never
	}
	free := l.free(p)
	for i := 0; free < n && i < len(l.entries); i++ {
		free += l.entries[i].n
		now = l.entries[i].at + fsm.Time(l.window)
	}
	return now
}

func (l *slidingLog) full(_ *Params, now fsm.Time) fsm.Time {
	if n := len(l.entries); n > 0 {
		return l.entries[n-1].at + fsm.Time(l.window)
	}
	return now
}

func (l *slidingLog) charged(expires fsm.Time, _ int64) fsm.Time {
	return max(expires, l.full(nil, expires))
}

// lease: the holder may use the tokens until the end of the lease, so that is when they count as used.
func (l *slidingLog) lease(_ *Params, _, until fsm.Time) (fsm.Time, fsm.Time, bool) {
	return until, until, true
}

func (l *slidingLog) append(dst []byte, base fsm.Time) []byte {
	dst = binary.AppendUvarint(dst, uint64(l.window))
	dst = binary.AppendUvarint(dst, uint64(len(l.entries)))
	before := base
	for _, e := range l.entries {
		dst = binary.AppendVarint(dst, int64(e.at-before))
		dst = binary.AppendUvarint(dst, uint64(e.n))
		before = e.at
	}
	return dst
}

func (l *slidingLog) decode(d *wire.Decoder, base fsm.Time) {
	l.window = decodeWindow(d)
	n := d.Count(2)
	l.entries = make([]logged, n)
	for i := range l.entries {
		at := base + fsm.Time(d.Varint())
		count := d.Uvarint()
		if count < 1 || count > 1<<62 || i > 0 && at <= base {
			d.Fail()
			return
		}
		l.entries[i] = logged{at: at, n: int64(count)}
		l.sum += int64(count)
		base = at
	}
}
