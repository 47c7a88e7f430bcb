package counter

import (
	"encoding/binary"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// concurrency counts slots in use. Each take leaves a hold, which ends when it is released or when its time is over:
// what a crashed caller held frees itself.
type concurrency struct {
	inUse int64
}

func (c *concurrency) advance(*Params, fsm.Time, int64) {}

func (c *concurrency) free(p *Params) int64 { return int64(p.Rate) - c.inUse }

func (c *concurrency) take(_ fsm.Time, n int64) { c.inUse += n }

func (c *concurrency) give(_ fsm.Time, n int64) { c.inUse = max(c.inUse-n, 0) }

func (c *concurrency) used(*Params) int64 { return c.inUse }

// ready is when enough holds have ended by themselves; releases come earlier.
func (c *concurrency) ready(p *Params, now fsm.Time, n int64, holds []hold) fsm.Time {
	if n > int64(p.Rate) {
		return Never
	}
	free := c.free(p)
	for i := 0; free < n && i < len(holds); i++ {
		free += int64(holds[i].n)
		now = holds[i].until
	}
	return now
}

func (c *concurrency) full(_ *Params, now fsm.Time) fsm.Time { return now } // holds keep the row alive

func (c *concurrency) charged(expires fsm.Time, _ int64) fsm.Time { return expires } // slots are not charged

func (c *concurrency) lease(*Params, fsm.Time, fsm.Time) (fsm.Time, fsm.Time, bool) {
	return 0, 0, false
}

func (c *concurrency) append(dst []byte, _ fsm.Time) []byte {
	return binary.AppendUvarint(dst, uint64(c.inUse))
}

func (c *concurrency) decode(d *wire.Decoder, _ fsm.Time) {
	n := d.Uvarint()
	if n > 1<<40 {
		d.Fail()
	}
	c.inUse = int64(n)
}
