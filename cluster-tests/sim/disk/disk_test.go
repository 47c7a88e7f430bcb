package disk

import (
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

func write(d *Disk, name, text string, sync bool) error {
	f, err := d.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := f.Write([]byte(text)); err != nil {
		return errors.Join(err, f.Close())
	}
	if sync {
		if err := f.Sync(); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

func content(t *testing.T, d *Disk, name string) string {
	t.Helper()
	f, err := d.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAFailingDiskRefusesTablesAndEndsTheProcessAtItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		d := New().Reopen(func(err error) { ended <- err })
		d.Fail(ENOSPC)
		if err := write(d, "1.sst", "x", false); !errors.Is(err, ENOSPC) {
			t.Errorf("a table: %v", err)
		}
		d.Fail(nil)
		f, err := d.Create("1.log", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d.Fail(EIO)
		written := make(chan error)
		go func() {
			_, err := f.Write([]byte("half"))
			written <- err
		}()
		if err := <-ended; !errors.Is(err, EIO) {
			t.Errorf("the process ends with %v", err)
		}
		synctest.Wait()
		next := d.Crash(100, rand.New(rand.NewPCG(1, 1)))
		if got := content(t, next, "1.log"); got != "ha" {
			t.Errorf("the next process finds %q", got)
		}
		if d.Failures() != 2 {
			t.Errorf("%d failures", d.Failures())
		}
		d.Release()
		if err := <-written; err != nil {
			t.Errorf("what is left of the process gets %v", err)
		}
	})
}

func TestSlowAndStalledLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New()
		store, err := raftlog.Open(raftlog.Options{FS: d, Dir: "raft", LogBytes: 256 << 10, BeforeSync: d.Wait})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		p := d.Logs(store)
		log, err := p.Open(1)
		if err != nil {
			t.Fatal(err)
		}
		store1 := func(index uint64) time.Duration {
			begin := time.Now()
			if err := log.StoreLog(&raft.Log{Index: index, Term: 1}); err != nil {
				t.Error(err)
			}
			return time.Since(begin)
		}
		if took := store1(1); took != 0 {
			t.Errorf("a good disk takes %v", took)
		}
		if n := d.Delayed(); n != 0 {
			t.Errorf("a good disk has delayed %d writes", n)
		}
		d.Slow(time.Second)
		if took := store1(2); took != time.Second {
			t.Errorf("a slow disk takes %v", took)
		}
		d.Slow(0)
		end := d.Stall()
		time.AfterFunc(5*time.Second, func() {
			if pending := p.SyncPending(); pending != 5*time.Second {
				t.Errorf("a write is pending for %v", pending)
			}
			end()
		})
		if took := store1(3); took != 5*time.Second {
			t.Errorf("a stalled disk takes %v", took)
		}
		if p.SyncPending() != 0 {
			t.Errorf("a write is still pending")
		}
		// Of two stalls at the same time each ends for those who wait for it.
		first := d.Stall()
		time.AfterFunc(time.Second, func() { time.AfterFunc(time.Minute, d.Stall()) })
		time.AfterFunc(3*time.Second, func() {
			first()
			first()
		})
		if took := store1(4); took != 3*time.Second {
			t.Errorf("a disk that is stalled twice takes %v", took)
		}
		if n := d.Delayed(); n != 3 {
			t.Errorf("%d writes were delayed", n)
		}
	})
}
