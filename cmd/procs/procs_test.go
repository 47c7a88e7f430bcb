package procs

import (
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestEnough(t *testing.T) {
	for _, c := range []struct {
		name    string
		n, most int
		load    float64
		want    int
	}{
		{"idle", 1, 8, 0, 1},
		{"one is enough", 1, 8, 0.7, 1},
		{"one is busy", 1, 8, 0.8, 2},
		{"more than ever needed at once", 2, 8, 1.9, 4},
		{"there are no more", 8, 8, 7.9, 8},
		{"not twice as many as there are", 4, 6, 3.9, 6},
		{"half would be busy", 2, 8, 0.6, 2},
		{"half are enough", 2, 8, 0.5, 1},
		{"half of an odd number", 3, 3, 0.5, 1},
		{"many are idle", 8, 8, 0.1, 4},
	} {
		if got := enough(c.n, c.most, c.load); got != c.want {
			t.Errorf("%s: %d of %d with a load of %v become %d, want %d", c.name, c.n, c.most, c.load, got, c.want)
		}
	}
}

// What enough returns must be enough for it: a number that goes up and down with the same load would stop the world for ever.
func TestTheNumberSettles(t *testing.T) {
	for most := 1; most <= 64; most++ {
		for load := 0.0; load <= float64(most); load += 0.05 {
			for n := 1; n <= most; n++ {
				now := n
				for range 10 {
					now = enough(now, most, load)
				}
				if next := enough(now, most, load); next != now {
					t.Fatalf("from %d of %d with a load of %v: %d, then %d", n, most, load, now, next)
				}
			}
		}
	}
}

// process is one with a load that the test says.
type process struct {
	mu   sync.Mutex
	load float64
	at   time.Time
	cpu  time.Duration
	set  []int
}

func (p *process) used() (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cpu += time.Duration(p.load * float64(time.Since(p.at)))
	p.at = time.Now()
	return p.cpu, true
}

func (p *process) becomes(load float64) {
	p.used()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.load = load
}

func TestTheNumberFollowsTheLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &process{at: time.Now()}
		p := &Processors{most: 8, used: s.used, begun: make(chan struct{}, 1),
			set: func(n int) { s.set = append(s.set, n) }, back: func() { s.set = append(s.set, -1) },
		}
		t.Setenv("GOMAXPROCS", "")
		p.Work(true) // of the start
		p.Work(false)
		p.Follow(t.Context())
		expect := func(what string, d time.Duration, want ...int) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if !slices.Equal(s.set, want) {
				t.Errorf("%s: set to %v, want %v", what, s.set, want)
			}
			s.set = nil
		}
		expect("idle", 10*look, 4, 2, 1)
		s.becomes(0.9)
		expect("a processor that is busy", 2*look, 2)
		s.becomes(3)
		expect("a burst", 2*look, 4)
		s.becomes(0)
		expect("idle again", 10*look, 2, 1)
		p.Work(true)
		expect("work begins", time.Millisecond, 2)
		s.becomes(1.2) // 1 of it the work's
		expect("work goes on", 10*look)
		s.becomes(0)
		p.Work(false)
		expect("work has ended", 2*look, 1)
		p.Work(true)
		p.Work(true)
		p.Work(false)
		expect("two works, one of which has ended", 3*look, 2)
		p.Work(false)
		p.Close()
		expect("the end", 0, -1)
	})
}

func TestWhoSetsTheNumberGetsIt(t *testing.T) {
	t.Setenv("GOMAXPROCS", "2")
	before := runtime.GOMAXPROCS(0)
	if before == 1 {
		t.Skip("there is one processor: nothing to adapt")
	}
	p := New()
	p.Follow(t.Context())
	time.Sleep(2 * look)
	p.Work(true)
	p.Work(false)
	if now := runtime.GOMAXPROCS(0); now != before {
		t.Errorf("%d of %d", now, before)
	}
	p.Close()
}

func TestOfThisProcess(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	if _, known := used(); !known || before == 1 {
		t.Skip("the CPU time of a process is unknown here, or there is one processor: nothing to adapt")
	}
	t.Setenv("GOMAXPROCS", "")
	p := New()
	p.Follow(t.Context())
	deadline := time.Now().Add(20 * time.Second) // other tests of this package may still be busy
	for runtime.GOMAXPROCS(0) != 1 && time.Now().Before(deadline) {
		time.Sleep(look / 5)
	}
	if now := runtime.GOMAXPROCS(0); now != 1 {
		t.Errorf("a process that does nothing has %d processors", now)
	}
	p.Close()
	if now := runtime.GOMAXPROCS(0); now != before {
		t.Errorf("%d of %d are left after the end", now, before)
	}
}
