package pace

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const logBytes = 32 << 20

func relaxed() *FS {
	fs := New(vfs.NewMem(), logBytes)
	fs.Relax()
	return fs
}

// write tells how long it takes to write n bytes to files of the category, in tables and steps of the size that Pebble's have.
func write(t *testing.T, fs vfs.FS, category vfs.DiskWriteCategory, n int) time.Duration {
	t.Helper()
	start := time.Now()
	step := make([]byte, 4<<10)
	for n > 0 {
		f, err := fs.Create("table.sst", category)
		if err != nil {
			t.Fatal(err)
		}
		for table := 2 << 20; n > 0 && table > 0; table -= len(step) {
			if k, err := f.Write(step); k != len(step) || err != nil {
				t.Fatalf("wrote %d bytes of %d: %v", k, len(step), err)
			}
			n -= len(step)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return time.Since(start)
}

func begin(t *testing.T, fs vfs.FS, log string) {
	t.Helper()
	f, err := fs.Create(log, "pebble-wal")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func about(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want-want/20-most-step || got > want+want/20+step {
		t.Errorf("%s took %v, want %v", what, got, want)
	}
}

func TestTablesTakeAPartOfTheTimeThatTheirLogTook(t *testing.T) {
	for _, test := range []struct {
		name         string
		filled, want time.Duration
	}{
		{"as fast as the log was filled", 4 * time.Second, time.Second},
		{"faster for a busy log", 400 * time.Millisecond, 100 * time.Millisecond},
		{"not slower than necessary after a quiet hour", time.Hour, 2 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs := relaxed()
				begin(t, fs, "1.log")
				time.Sleep(test.filled)
				begin(t, fs, "2.log")
				about(t, "a memtable", write(t, fs, Flush, logBytes), test.want)
				if took := write(t, fs, "pebble-compaction", logBytes); took != 0 {
					t.Errorf("a compaction took %v", took)
				}
			})
		})
	}
}

// The rate is that of the newest log, also for a table that is being written: or a load that begins would wait for memory.
func TestALogThatFillsFasterHurriesTheTableBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := relaxed()
		begin(t, fs, "1.log")
		time.Sleep(8 * time.Second)
		begin(t, fs, "2.log") // 16 MiB a second
		go func() {
			time.Sleep(time.Second)
			f, err := fs.ReuseForWrite("1.log", "3.log", "pebble-wal") // 128 MiB a second
			if err != nil {
				t.Error(err)
				return
			}
			_ = f.Close()
		}()
		about(t, "the table", write(t, fs, Flush, logBytes), time.Second+time.Second/8)
	})
}

// A timer is often later than a few KiB take, and a busy disk sometimes by much more.
func TestPausesAreFewAndMakeUpForALittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := relaxed().Create("table.sst", Flush)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// write writes as much as may be written in d, and tells how long it took and how many pauses there were.
		write := func(d time.Duration) (took time.Duration, pauses int) {
			t.Helper()
			start := time.Now()
			for written := time.Duration(0); written < d; written += time.Second * 4 / (slowest >> 10) {
				before := time.Now()
				if _, err := f.Write(make([]byte, 4<<10)); err != nil {
					t.Fatal(err)
				}
				if p := time.Since(before); p > 0 {
					pauses++
					if p < step {
						t.Errorf("a pause of %v", p)
					}
				}
			}
			return time.Since(start), pauses
		}
		for _, test := range []struct{ late, write, least, most time.Duration }{
			{0, time.Second, time.Second - most - 2*step, time.Second},
			{most / 2, time.Second, time.Second - most/2 - 2*step, time.Second - most/2 + step},
			{time.Second, time.Second, time.Second - most - 2*step, time.Second - most + step},
		} {
			time.Sleep(test.late)
			if took, pauses := write(test.write); took < test.least || took > test.most || pauses > int(test.write/step) {
				t.Errorf("%v late, what fits in %v took %v with %d pauses, want %v to %v", test.late, test.write, took, pauses, test.least, test.most)
			}
		}
	})
}

func TestHurryEndsPausesUntilRelax(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := New(vfs.NewMem(), logBytes)
		if took := write(t, fs, Flush, logBytes); took != 0 {
			t.Errorf("before the first Relax a table took %v", took)
		}
		fs.Relax()
		var events pebble.EventListener
		fs.Listen(&events)
		go func() {
			time.Sleep(time.Second)
			fs.Hurry()
			events.WriteStallBegin(pebble.WriteStallBeginInfo{})
			events.WriteStallEnd()
		}()
		about(t, "a table, hurried after a second,", write(t, fs, Flush, logBytes), time.Second)
		if took := write(t, fs, Flush, logBytes); took != 0 {
			t.Errorf("hurried still, the next one took %v", took)
		}
		fs.Relax()
		about(t, "a table, after all hurry,", write(t, fs, Flush, logBytes), 2*time.Second)
		// What was written in a hurry does not have to be waited for afterwards.
		f, err := fs.Create("half.sst", Flush)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fs.Hurry()
		for _, relaxed := range []bool{false, true} {
			if relaxed {
				fs.Relax()
			}
			start := time.Now()
			if _, err := f.Write(make([]byte, logBytes)); err != nil || time.Since(start) > 0 {
				t.Errorf("half a table took %v, %v", time.Since(start), err)
			}
		}
		time.Sleep(2 * time.Second) // for the second half
		events.WriteStallBegin(pebble.WriteStallBeginInfo{})
		if took := write(t, fs, Flush, logBytes); took != 0 {
			t.Errorf("while writes wait a table took %v", took)
		}
	})
}
