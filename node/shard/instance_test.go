package shard

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
)

// keepBusy hands in frames, each of its own client, until stop is called, which returns what was answered, by kind. Each
// frame must get one answer.
func (r *replica) keepBusy(t *testing.T) (stop func() (done, refused, unknown int)) {
	answers := make(chan error, 10_000)
	ended := make(chan struct{})
	end := make(chan struct{})
	sent := 0
	go func() {
		defer close(ended)
		for sent < cap(answers) {
			f := frame(byte(sent), 1, 1)
			f.Client[1], f.Client[2] = byte(sent>>8), 1
			if err := r.ProposeAsync(f, func(_ fsm.FrameOutcome, err error) { answers <- err }); err == nil {
				sent++
			}
			select {
			case <-end:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func() (done, refused, unknown int) {
		close(end)
		<-ended
		for range sent {
			select {
			case err := <-answers:
				switch {
				case err == nil:
					done++
				case fsm.Safe(err):
					refused++
				case errors.Is(err, fsm.ErrOutcomeUnknown):
					unknown++
				default:
					t.Errorf("an answer: %v", err)
				}
			case <-time.After(time.Minute):
				t.Fatalf("of %d frames %d were executed, %d refused, %d unknown, the others got no answer", sent, done, refused, unknown)
			}
		}
		return done, refused, unknown
	}
}

func TestClosingAnswersWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, make([]Timing, 1)...)
		r := c.leader(c.replicas...)
		r.delay.Store(int64(10 * time.Millisecond))
		stop := r.keepBusy(t)
		time.Sleep(time.Second)
		begin := time.Now()
		c.stop()
		if took := time.Since(begin) - time.Minute; took > 2*time.Second {
			t.Errorf("closing took %v", took)
		}
		if done, refused, unknown := stop(); done == 0 || unknown != 0 {
			t.Errorf("%d frames were executed, %d refused, %d unknown: what Raft had taken it could finish", done, refused, unknown)
		}
	})
}

func TestARestartOfTheInstanceKeepsProposalsGoing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, make([]Timing, 1)...)
		defer c.stop()
		r := c.leader(c.replicas...)
		r.delay.Store(int64(10 * time.Millisecond))
		stop := r.keepBusy(t)
		for range 5 {
			time.Sleep(time.Second)
			r.follow(0)
			r.restart("for the test")
			c.leader(r)
		}
		done, _, unknown := stop()
		if done == 0 || unknown != 0 {
			t.Errorf("%d frames were executed, %d unknown", done, unknown)
		}
		r.delay.Store(0)
		if n, err := r.read(); err != nil || int(n) != done {
			t.Errorf("the sum is %d, %v; %d frames were executed", n, err, done)
		}
	})
}
