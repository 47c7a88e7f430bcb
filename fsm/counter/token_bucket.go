package counter

import (
	"encoding/binary"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// tokenBucket fills at rate tokens a window up to burst; a request takes its tokens out. One token is counted as window
// units, so that each millisecond brings exactly rate units.
//
// Tokens that are leased or reserved are out of the bucket, but the bucket only fills up to burst less these: the holder
// may use them at any time until the lease ends, or give them back, and bucket and holder together must never have more
// than burst.
type tokenBucket struct {
	window fsm.Millis // of the units; 0 in a new bucket
	rate   int64      // of the last advance
	level  int64      // in units, negative when charged beyond empty
	at     fsm.Time   // when level was right
}

func (b *tokenBucket) advance(p *Params, now fsm.Time, out int64) {
	capacity := int64(p.Burst)*p.Window - tokenTime(out, p.Window)
	switch {
	case b.window == 0:
		b.level, b.at = capacity, now
	case b.window != p.Window:
		b.level = rescale(b.level, p.Window, b.window)
	}
	b.window, b.rate = p.Window, int64(p.Rate)
	elapsed := max(int64(now-b.at), 0)
	b.at = now
	if b.level >= capacity {
		b.level = capacity
	} else if missing := uint64(capacity) - uint64(b.level); uint64(elapsed) > missing/uint64(p.Rate) {
		b.level = capacity
	} else {
		b.level += elapsed * int64(p.Rate)
	}
}

func (b *tokenBucket) free(*Params) int64 { return floorDiv(b.level, b.window) }

func (b *tokenBucket) take(_ fsm.Time, n int64) {
	b.level = max(b.level-tokenTime(n, b.window), -maxTokenTime) // no overflow: both are within maxTokenTime
}

func (b *tokenBucket) give(_ fsm.Time, n int64) {
	b.level = min(b.level+tokenTime(n, b.window), maxTokenTime)
}

func (b *tokenBucket) used(p *Params) int64 { return int64(p.Burst) - b.free(p) }

func (b *tokenBucket) ready(p *Params, now fsm.Time, n int64, _ []hold) fsm.Time {
	if n > int64(p.Burst) {
		return Never
	}
	return now + fsm.Time(divUp(max(n*b.window-b.level, 0), int64(p.Rate)))
}

func (b *tokenBucket) full(p *Params, now fsm.Time) fsm.Time {
	return b.ready(p, now, int64(p.Burst), nil)
}

func (b *tokenBucket) charged(expires fsm.Time, n int64) fsm.Time {
	return later(expires, divUp(tokenTime(n, b.window), b.rate))
}

func (b *tokenBucket) lease(_ *Params, _, until fsm.Time) (fsm.Time, fsm.Time, bool) {
	return until, until, true
}

func (b *tokenBucket) append(dst []byte, base fsm.Time) []byte {
	dst = binary.AppendUvarint(dst, uint64(b.window))
	dst = binary.AppendUvarint(dst, uint64(b.rate))
	dst = binary.AppendVarint(dst, b.level)
	return binary.AppendVarint(dst, int64(base-b.at))
}

func (b *tokenBucket) decode(d *wire.Decoder, base fsm.Time) {
	b.window = decodeWindow(d)
	b.rate = decodeRate(d)
	b.level = d.Varint()
	if b.level > maxTokenTime || b.level < -maxTokenTime {
		d.Fail()
	}
	b.at = base - fsm.Time(d.Varint())
}

func decodeWindow(d *wire.Decoder) fsm.Millis {
	w := d.Uvarint()
	if w < 1 || w > MaxWindow {
		d.Fail()
		return 1
	}
	return fsm.Millis(w)
}

func decodeRate(d *wire.Decoder) int64 {
	rate := d.Uvarint()
	if rate < 1 || rate > MaxRate {
		d.Fail()
		return 1
	}
	return int64(rate)
}

// later adds a span to a time, as far as times go.
func later(t fsm.Time, span fsm.Millis) fsm.Time {
	if t > Never-fsm.Time(span) {
		return Never
	}
	return t + fsm.Time(span)
}
