package aio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// supported skips a test where the kernel does no such syncs, as in sandboxes that refuse io_setup(2).
func supported(t *testing.T) {
	t.Helper()
	if !Supported(t.TempDir()) {
		t.Skip("no asynchronous syncs on this machine, all are plain ones")
	}
}

func temporary(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.WriteString("something to sync"); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestTheKernelSyncs(t *testing.T) {
	supported(t)
	f, s := temporary(t), newSyncs()
	for name, what := range map[string]uint16{"all": all, "data": data} {
		plain := func() error { return errors.New("the plain way was taken") }
		if err := s.do(f.Fd(), what, plain); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A file that cannot be synced is left to the plain way, whose error is the caller's.
func TestWhatTheKernelRefusesIsSyncedPlainly(t *testing.T) {
	f, s := temporary(t), newSyncs()
	if o := s.take(); o != nil {
		s.give(o) // or its eventfd would have the closed file's number
	}
	fd := f.Fd()
	_ = f.Close()
	if err := s.do(fd, data, f.Sync); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed file: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	called := false
	if err := s.do(w.Fd(), all, func() error { called = true; return nil }); err != nil || !called {
		t.Errorf("a pipe: %v, the plain way taken: %v", err, called)
	}
}

// A kernel that does no such syncs is asked once, and not once more for each sync.
func TestTheKernelIsAskedOnce(t *testing.T) {
	supported(t)
	s := newSyncs()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	open := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	plain := 0
	count := func() error { plain++; return nil }
	before := open()
	for range 100 {
		if err := s.do(w.Fd(), data, count); err != nil {
			t.Fatal(err)
		}
	}
	if n := open() - before; n > 1 || plain != 100 {
		t.Errorf("%d files more are open after a hundred refusals, %d of them plain", n, plain)
	}
	if !s.off.Load() {
		t.Error("it would be asked again")
	}
}

// What has begun has an outcome, which must not be lost: the plain way could tell of success after it.
func TestALostOutcomeIsAnError(t *testing.T) {
	supported(t)
	f, s := temporary(t), newSyncs()
	o := s.take()
	if err := (&one{context: 1, ready: o.ready}).wait(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("without a context: %v", err)
	}
	if err := o.begin(f.Fd(), data); err != nil {
		t.Fatal(err)
	}
	if err := o.wait(); err != nil || o.events[0].err() != nil {
		t.Errorf("%v, %v", err, o.events[0].err())
	}
}

// What has begun and failed is the caller's error, and is not tried again the plain way, which could tell of success: the
// kernel reports a failed write to a file once. A sync that fails cannot be had from a sound disk, but a read can: of no
// bytes, where eight are the least.
func TestAFailureIsNotTriedAgain(t *testing.T) {
	supported(t)
	const read = 0 // IOCB_CMD_PREAD
	s := newSyncs()
	o := s.take()
	if o == nil {
		t.Fatal("nothing to sync with")
	}
	plain := func() error { return errors.New("the plain way was taken") }
	if err := s.do(uintptr(o.command.event), read, plain); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v", err)
	}
	if s.off.Load() {
		t.Error("one failure has ended it for all")
	}
}

func TestAFailedSyncIsAnError(t *testing.T) {
	if err := (&event{result: -int64(unix.EIO)}).err(); !errors.Is(err, unix.EIO) {
		t.Errorf("%v", err)
	}
	if err := (&event{}).err(); err != nil {
		t.Errorf("%v", err)
	}
}

func TestManySyncsAtATime(t *testing.T) {
	supported(t)
	dir, fs := t.TempDir(), FS(vfs.Default)
	var work sync.WaitGroup
	for i := range 40 {
		work.Go(func() {
			f, err := fs.Create(filepath.Join(dir, fmt.Sprint(i)), "test")
			if err != nil {
				t.Error(err)
				return
			}
			for range 5 {
				_, err := f.Write(make([]byte, 5000))
				if err := errors.Join(err, f.SyncData(), f.Sync()); err != nil {
					t.Error(err)
				}
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	d, err := fs.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		t.Errorf("a directory: %v", err)
	}
}

// Files that are no files of the operating system are left as they are.
func TestOtherFilesAreLeftAlone(t *testing.T) {
	f, err := FS(vfs.NewMem()).Create("x", "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, wrapped := f.(file); wrapped || f.Sync() != nil {
		t.Errorf("a file in memory is %T", f)
	}
}

func TestNothingIsSupportedWhereThereIsNothing(t *testing.T) {
	if Supported(filepath.Join(t.TempDir(), "none")) {
		t.Error("a directory that is not there can be synced")
	}
}
