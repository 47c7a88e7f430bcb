package pace

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const logBytes = 32 << 20

// write creates a file of the category and tells how long it takes to write n bytes to it, in the steps that Pebble takes.
func write(t *testing.T, fs vfs.FS, category vfs.DiskWriteCategory, n int) time.Duration {
	t.Helper()
	start := time.Now()
	f, err := fs.Create("table.sst", category)
	if err != nil {
		t.Fatal(err)
	}
	step := make([]byte, 64<<10)
	for ; n > 0; n -= len(step) {
		if k, err := f.Write(step); k != len(step) || err != nil {
			t.Fatalf("wrote %d bytes of %d: %v", k, len(step), err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
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
	if got < want*95/100 || got > want*105/100 {
		t.Errorf("%s took %v, want %v", what, got, want)
	}
}

func TestTablesTakeAPartOfTheTimeThatTheirLogTook(t *testing.T) {
	for _, test := range []struct {
		name         string
		filled, want time.Duration
	}{
		{"as fast as the log was filled", 4 * time.Second, time.Second},
		{"faster for a busy log", 100 * time.Millisecond, 25 * time.Millisecond},
		{"not slower than necessary after a quiet hour", time.Hour, 2 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs := New(vfs.NewMem(), logBytes, Flush)
				begin(t, fs, "1.log")
				time.Sleep(test.filled)
				begin(t, fs, "2.log")
				about(t, "a memtable", write(t, fs, Flush, logBytes), test.want)
				if took := write(t, fs, Compaction, logBytes); took != 0 {
					t.Errorf("a table of another category took %v", took)
				}
			})
		})
	}
}

// The rate is that of the newest log, also for a table that is being written: or a load that begins would wait for memory.
func TestALogThatFillsFasterHurriesTheTableBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := New(vfs.NewMem(), logBytes, Flush)
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

// What a pause was too long for, because the processor or the disk was busy, is not written in a burst afterwards.
func TestWhatIsLateIsNotMadeUpFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := New(vfs.NewMem(), logBytes, Flush)
		f, err := fs.Create("table.sst", Flush)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		step, takes := make([]byte, slowest/128), time.Second/128
		for i, want := range []time.Duration{0, takes, takes, 0, takes} {
			if i == 3 {
				time.Sleep(time.Second)
			}
			start := time.Now()
			if _, err := f.Write(step); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took != want {
				t.Errorf("write %d took %v, want %v", i, took, want)
			}
		}
	})
}

func TestHurryEndsAllPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := New(vfs.NewMem(), logBytes, Flush)
		go func() {
			time.Sleep(time.Second)
			fs.Hurry()
			fs.Hurry() // no matter how often
		}()
		about(t, "a table, hurried after a second,", write(t, fs, Flush, logBytes), time.Second)
		if took := write(t, fs, Flush, logBytes); took != 0 {
			t.Errorf("the next one took %v", took)
		}
	})
}
