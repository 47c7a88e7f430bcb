package counter

import (
	"encoding/binary"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// slidingWindow weights the count of the window before by the share of it that a window ending now still covers. It
// needs two numbers whatever the rate, and takes for granted that the window before was used evenly.
type slidingWindow struct {
	window fsm.Millis
	start  fsm.Time // of the current window, aligned to the epoch
	prev   int64    // used in the window before
	cur    int64    // used in this one
	now    fsm.Time // of the last advance, not stored
}

func (w *slidingWindow) advance(p *Params, now fsm.Time, _ int64) {
	start, _ := aligned(now, p.Window, 0)
	switch {
	case w.window != p.Window: // new, or the rules changed: what was used lately counts as used now
		w.prev, w.cur = 0, w.prev+w.cur
	case start == w.start:
	case start == w.start+fsm.Time(w.window):
		w.prev, w.cur = w.cur, 0
	case start > w.start:
		w.prev, w.cur = 0, 0
	}
	w.window, w.start, w.now = p.Window, start, now
}

// weighted is the part of the window before that still counts, rounded up.
func (w *slidingWindow) weighted() int64 {
	return mulDivUp(w.prev, w.window-int64(w.now-w.start), w.window)
}

func (w *slidingWindow) free(p *Params) int64 { return int64(p.Rate) - w.used(p) }

func (w *slidingWindow) take(at fsm.Time, n int64) {
	switch {
	case at >= w.start:
		w.cur += n
	case at >= w.start-fsm.Time(w.window):
		w.prev += n
	}
}

func (w *slidingWindow) give(at fsm.Time, n int64) {
	switch {
	case at >= w.start:
		w.cur = max(w.cur-n, 0)
	case at >= w.start-fsm.Time(w.window):
		w.prev = max(w.prev-n, 0)
	}
}

func (w *slidingWindow) used(*Params) int64 { return w.weighted() + w.cur }

func (w *slidingWindow) ready(p *Params, now fsm.Time, n int64, _ []hold) fsm.Time {
	rate := int64(p.Rate)
	if n > rate {
		return Never
	}
	if n <= w.free(p) {
		return now
	}
	if room := rate - w.cur - n; room >= 0 {
		// The earliest e with prev·(window-e)/window ≤ room. prev is not 0, or the tokens would be free.
		return w.start + fsm.Time(w.window-mulDiv(room, w.window, w.prev))
	}
	// In the next window, where cur has become prev.
	e := w.window - mulDiv(rate-n, w.window, w.cur)
	return w.start + fsm.Time(w.window+max(e, 0))
}

func (w *slidingWindow) full(_ *Params, now fsm.Time) fsm.Time {
	switch {
	case w.cur > 0:
		return w.start + 2*fsm.Time(w.window)
	case w.prev > 0:
		return w.start + fsm.Time(w.window)
	}
	return now
}

func (w *slidingWindow) charged(expires fsm.Time, _ int64) fsm.Time {
	return max(expires, w.full(nil, expires))
}

// lease ends with the window: the tokens are counted in this one.
func (w *slidingWindow) lease(_ *Params, now, until fsm.Time) (fsm.Time, fsm.Time, bool) {
	return min(until, w.start+fsm.Time(w.window)), now, true
}

func (w *slidingWindow) append(dst []byte, base fsm.Time) []byte {
	dst = binary.AppendUvarint(dst, uint64(w.window))
	dst = binary.AppendVarint(dst, int64(base-w.start))
	dst = binary.AppendUvarint(dst, uint64(w.prev))
	return binary.AppendUvarint(dst, uint64(w.cur))
}

func (w *slidingWindow) decode(d *wire.Decoder, base fsm.Time) {
	w.window = decodeWindow(d)
	w.start = base - fsm.Time(d.Varint())
	prev, cur := d.Uvarint(), d.Uvarint()
	if prev > 1<<62 || cur > 1<<62 {
		d.Fail()
	}
	w.prev, w.cur = int64(prev), int64(cur)
}
