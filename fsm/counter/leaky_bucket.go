package counter

import (
	"encoding/binary"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// leakyBucket is the leaky bucket as a meter, which is the generic cell rate algorithm (ITU-T I.371): a request is
// scheduled one emission interval (window / rate) after the one before it, and may come ahead of its time by burst
// intervals at most. ahead is how far the schedule is in the future: the theoretical arrival time less now, kept in
// units of which each millisecond has rate, so that an interval is exactly window units.
type leakyBucket struct {
	window fsm.Millis
	rate   int64 // of the last advance
	ahead  int64
	at     fsm.Time
}

func (b *leakyBucket) advance(p *Params, now fsm.Time, out int64) {
	floor := tokenTime(out, p.Window) // tokens that may still be used, or given back, stay on the schedule
	switch {
	case b.window == 0:
		b.ahead, b.at = floor, now
	case b.window != p.Window:
		b.ahead = min(mulDivUp(b.ahead, p.Window, b.window), maxTokenTime)
	}
	b.window, b.rate = p.Window, int64(p.Rate)
	elapsed := max(int64(now-b.at), 0)
	b.at = now
	if over := b.ahead - floor; over <= 0 || elapsed > over/int64(p.Rate) {
		b.ahead = floor
	} else {
		b.ahead -= elapsed * int64(p.Rate)
	}
}

func (b *leakyBucket) free(p *Params) int64 {
	return floorDiv(int64(p.Burst)*b.window-b.ahead, b.window)
}

func (b *leakyBucket) take(_ fsm.Time, n int64) {
	b.ahead = min(b.ahead+tokenTime(n, b.window), maxTokenTime) // no overflow: both are within maxTokenTime
}

func (b *leakyBucket) give(_ fsm.Time, n int64) { b.ahead = max(b.ahead-tokenTime(n, b.window), 0) }

func (b *leakyBucket) used(p *Params) int64 { return int64(p.Burst) - b.free(p) }

func (b *leakyBucket) ready(p *Params, now fsm.Time, n int64, _ []hold) fsm.Time {
	if n > int64(p.Burst) {
		return Never
	}
	return now + fsm.Time(divUp(max(b.ahead-(int64(p.Burst)-n)*b.window, 0), int64(p.Rate)))
}

func (b *leakyBucket) full(p *Params, now fsm.Time) fsm.Time {
	return now + fsm.Time(divUp(b.ahead, int64(p.Rate)))
}

func (b *leakyBucket) charged(expires fsm.Time, n int64) fsm.Time {
	return later(expires, divUp(tokenTime(n, b.window), b.rate))
}

func (b *leakyBucket) lease(_ *Params, _, until fsm.Time) (fsm.Time, fsm.Time, bool) {
	return until, until, true
}

func (b *leakyBucket) append(dst []byte, base fsm.Time) []byte {
	dst = binary.AppendUvarint(dst, uint64(b.window))
	dst = binary.AppendUvarint(dst, uint64(b.rate))
	dst = binary.AppendUvarint(dst, uint64(b.ahead))
	return binary.AppendVarint(dst, int64(base-b.at))
}

func (b *leakyBucket) decode(d *wire.Decoder, base fsm.Time) {
	b.window = decodeWindow(d)
	b.rate = decodeRate(d)
	ahead := d.Uvarint()
	if ahead > maxTokenTime {
		d.Fail()
	}
	b.ahead = int64(ahead)
	b.at = base - fsm.Time(d.Varint())
}
