package raftlog

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A spare is written slowly, so that the log's own syncs find the disk free most of the time, and not at all any more when
// the log is closed.
func TestASpareIsWrittenSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const steps = 100
		fs := vfs.NewMem()
		p := newPrewriter(fs, "", steps*fillBytes)
		written := func() int64 {
			info, err := fs.Stat("spare")
			if err != nil {
				t.Fatal(err)
			}
			return info.Size()
		}
		create := func(name string) (size int64) {
			f, err := p.Create(name, "pebble-wal")
			if err != nil {
				t.Fatal(err)
			}
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			return info.Size()
		}
		create("1.log")
		create("2.log")
		time.Sleep(steps / 2 * fillPause)
		if n := written(); n < steps/3*fillBytes || n > steps*2/3*fillBytes {
			t.Errorf("half of the time: %d bytes of %d", n, p.size)
		}
		if size := create("3.log"); size != 0 {
			t.Errorf("an incomplete spare of %d bytes is in use", size)
		}
		time.Sleep(steps * fillPause)
		synctest.Wait()
		if size := create("4.log"); size != p.size {
			t.Errorf("a log of %d bytes, the spare should have %d", size, p.size)
		}
		time.Sleep(3 * fillPause)
		begin := time.Now()
		p.close()
		if took := time.Since(begin); took != 0 {
			t.Errorf("closing took %v", took)
		}
		if n := written(); n > 10*fillBytes {
			t.Errorf("%d bytes of the next spare after three pauses", n)
		}
	})
}
