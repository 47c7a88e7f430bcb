package counter

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfastdb/holdfast/fsm"
)

var everyCalendar = []Calendar{None, Minute, Hour, Day, Week, Month, Year}

func checkWindow(t failer, c Calendar, now fsm.Time, length fsm.Millis) {
	t.Helper()
	start, end := c.window(now, length)
	wantStart, wantEnd := calendarReference(c, now, length)
	if start != wantStart || end != wantEnd {
		t.Fatalf("%q window of %v: [%d, %d), package time has [%d, %d)", c, time.UnixMilli(int64(now)).UTC(), start, end, wantStart, wantEnd)
	}
	if c != None && fsm.Millis(end-start) > c.Window() {
		t.Fatalf("%q window of %d is longer than Window says", c, now)
	}
}

var lastMoment = time.Date(2200, 12, 31, 23, 59, 59, 0, time.UTC).UnixMilli()

func TestCalendarAgainstPackageTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := rapid.SampledFrom(everyCalendar).Draw(t, "calendar")
		length := rapid.Int64Range(1, MaxWindow).Draw(t, "length")
		for range 200 {
			checkWindow(t, c, fsm.Time(rapid.Int64Range(0, lastMoment).Draw(t, "now")), length)
		}
	})
}

// Every month's edges, which random moments hardly ever meet.
func TestCalendarEdges(t *testing.T) {
	for m := time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC); m.Year() <= 2200; m = m.AddDate(0, 1, 0) {
		for _, c := range everyCalendar {
			for _, now := range []int64{m.UnixMilli() - 1, m.UnixMilli(), m.UnixMilli() + 28*day, m.UnixMilli() + 29*day - 1} {
				if now >= 0 {
					checkWindow(t, c, fsm.Time(now), 86_399_999)
				}
			}
		}
	}
}

func TestCalendarNames(t *testing.T) {
	for _, c := range everyCalendar {
		if got, ok := ParseCalendar(c.String()); !ok || got != c {
			t.Errorf("%q is parsed as %v, %v", c, got, ok)
		}
	}
	if _, ok := ParseCalendar("fortnight"); ok {
		t.Error("fortnight is no calendar window")
	}
	if got := Calendar(99).String(); got != "" {
		t.Errorf("an unknown calendar is named %q", got)
	}
}

func TestFixedWindowFollowsTheCalendar(t *testing.T) {
	for _, c := range everyCalendar[1:] {
		s := newShard(t)
		l := limit(1, Params{Algorithm: FixedWindow, Rate: 2, Window: 1, Calendar: c})
		_, end := calendarReference(c, s.now, 0)
		s.now = end - 1
		if !s.take(2, l).Allowed {
			t.Fatalf("%s: denied", c)
		}
		if r := s.take(1, l); r.Allowed || r.Limits[0].RetryIn != 1 || r.Limits[0].ResetIn != 1 {
			t.Fatalf("%s: %+v", c, r)
		}
		s.now = end
		if !s.take(2, l).Allowed {
			t.Fatalf("%s: denied in the new window", c)
		}
		s.drain()
	}
}
