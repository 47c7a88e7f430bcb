package counter

import (
	"encoding/binary"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// fixedWindow counts what was used since the window began. Windows are aligned to the Unix epoch or to the calendar, so
// all clients' windows end together; around an end twice the rate can pass within a short time.
type fixedWindow struct {
	start, end fsm.Time
	count      int64
}

func (w *fixedWindow) advance(p *Params, now fsm.Time, _ int64) {
	start, end := p.Calendar.window(now, p.Window)
	// If the rules changed, a window that lies within the new one still counts.
	if w.start < start {
		w.count = 0
	}
	w.start, w.end = start, end
}

func (w *fixedWindow) free(p *Params) int64 { return int64(p.Rate) - w.count }

// take does nothing for a window that is over: whether a charge comes before or after the first request of the next
// window makes no difference.
func (w *fixedWindow) take(at fsm.Time, n int64) {
	if at >= w.start {
		w.count += n
	}
}

func (w *fixedWindow) give(at fsm.Time, n int64) {
	if at >= w.start {
		w.count = max(w.count-n, 0)
	}
}

func (w *fixedWindow) used(*Params) int64 { return w.count }

func (w *fixedWindow) ready(p *Params, now fsm.Time, n int64, _ []hold) fsm.Time {
	switch {
	case n > int64(p.Rate):
		return Never
	case n <= w.free(p):
		return now
	}
	return w.end
}

func (w *fixedWindow) full(_ *Params, now fsm.Time) fsm.Time {
	if w.count == 0 {
		return now
	}
	return w.end
}

// charged needs no more time: see row.whole.
func (w *fixedWindow) charged(expires fsm.Time, _ int64) fsm.Time { return expires }

// lease ends with the window: the tokens are of this window.
func (w *fixedWindow) lease(_ *Params, now, until fsm.Time) (fsm.Time, fsm.Time, bool) {
	return min(until, w.end), now, true
}

func (w *fixedWindow) append(dst []byte, base fsm.Time) []byte {
	dst = binary.AppendVarint(dst, int64(base-w.start))
	return binary.AppendUvarint(dst, uint64(w.count))
}

func (w *fixedWindow) decode(d *wire.Decoder, base fsm.Time) {
	w.start = base - fsm.Time(d.Varint())
	count := d.Uvarint()
	if count > 1<<62 {
		d.Fail()
	}
	w.count = int64(count)
}
