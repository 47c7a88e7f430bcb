package fatal_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/holdfastdb/holdfast/storage/fatal"
)

// What a failed write or sync has left of these files nobody knows. A table is written anew; one that is there must be read.
func TestTheProcessEndsForWhatItCannotDoWithout(t *testing.T) {
	for _, tt := range []struct {
		file string
		ends bool
	}{
		{"000001.log", true}, {"MANIFEST-000001", true}, {"temporary.000001.dbtmp", true}, {"000001.sst", false}, {"spare", false},
	} {
		for _, kind := range []errorfs.OpKind{errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo} {
			var why []error
			disk := fatal.New(slog.New(slog.DiscardHandler), "log", func(err error) { why = append(why, err) }).Disk(failing(kind))
			f, err := disk.Create(tt.file, vfs.WriteCategoryUnspecified)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // whoever comes later is not told again
				_, err1 := f.Write([]byte("x"))
				_, err2 := f.SyncTo(1)
				if err := errors.Join(err1, err2, f.SyncData(), f.Sync()); !errors.Is(err, syscall.EIO) {
					t.Errorf("%s: the caller is told %v", tt.file, err)
				}
			}
			if ended := len(why) > 0; ended != tt.ends || len(why) > 1 {
				t.Errorf("%s, operation %d: the process ends for %v", tt.file, kind, why)
			}
			if tt.ends && (!errors.Is(why[0], syscall.EIO) || !strings.Contains(why[0].Error(), tt.file)) {
				t.Errorf("%s: the reason is %v", tt.file, why[0])
			}
		}
	}
	t.Run("a directory", func(t *testing.T) {
		var why error
		disk := fatal.New(slog.New(slog.DiscardHandler), "log", func(err error) { why = err }).Disk(failing(errorfs.OpFileSync))
		d, err := disk.OpenDir("")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Sync(); !errors.Is(err, syscall.EIO) || !errors.Is(why, syscall.EIO) {
			t.Errorf("the caller is told %v, the process ends for %v", err, why)
		}
	})
	t.Run("a table that cannot be read", func(t *testing.T) {
		for _, kind := range []errorfs.OpKind{errorfs.OpFileRead, errorfs.OpFileReadAt} {
			var why error
			disk := fatal.New(slog.New(slog.DiscardHandler), "log", func(err error) { why = err }).Disk(failing(kind))
			f, err := disk.Create("1.sst", vfs.WriteCategoryUnspecified)
			if err == nil {
				err = f.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			if f, err = disk.Open("1.sst"); err != nil {
				t.Fatal(err)
			}
			_, err1 := f.Read(make([]byte, 1))
			_, err2 := f.ReadAt(make([]byte, 1), 0)
			if !errors.Is(errors.Join(err1, err2), syscall.EIO) || !errors.Is(why, syscall.EIO) {
				t.Errorf("the callers are told %v and %v, the process ends for %v", err1, err2, why)
			}
		}
	})
	t.Run("a table that is shorter than it was", func(t *testing.T) {
		var why error
		disk := fatal.New(slog.New(slog.DiscardHandler), "log", func(err error) { why = err }).Disk(vfs.NewMem())
		f, err := disk.Create("1.sst", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("xy")); err != nil {
			t.Fatal(err)
		}
		if n, _ := f.ReadAt(make([]byte, 2), 0); n != 2 || why != nil {
			t.Errorf("%d bytes are read, the process ends for %v", n, why)
		}
		if _, err := f.ReadAt(make([]byte, 2), 1); !errors.Is(err, io.EOF) || !errors.Is(why, io.EOF) {
			t.Errorf("the caller is told %v, the process ends for %v", err, why)
		}
	})
	t.Run("a directory that cannot be listed", func(t *testing.T) {
		var why error
		disk := fatal.New(slog.New(slog.DiscardHandler), "log", func(err error) { why = err }).Disk(failing(errorfs.OpList))
		if _, err := disk.List(""); !errors.Is(err, syscall.EIO) || !errors.Is(why, syscall.EIO) {
			t.Errorf("the caller is told %v, the process ends for %v", err, why)
		}
	})
	t.Run("a log that cannot be begun", func(t *testing.T) {
		for _, kind := range []errorfs.OpKind{errorfs.OpCreate, errorfs.OpReuseForWrite} {
			var why error
			disk := fatal.New(slog.New(slog.DiscardHandler), "log", func(err error) { why = err }).Disk(failing(kind))
			_, err1 := disk.Create("2.log", vfs.WriteCategoryUnspecified)
			_, err2 := disk.ReuseForWrite("2.log", "3.log", vfs.WriteCategoryUnspecified)
			if errors.Join(err1, err2) == nil || !errors.Is(why, syscall.EIO) {
				t.Errorf("operation %d: the callers are told %v and %v, the process ends for %v", kind, err1, err2, why)
			}
		}
	})
}

func failing(kind errorfs.OpKind) vfs.FS {
	return errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == kind {
			return syscall.EIO
		}
		return nil
	}))
}

// Pebble must not go on behind what it calls fatal, should the process not end.
func TestWhatPebbleCallsFatalEndsTheProcess(t *testing.T) {
	var why error
	defer func() {
		if got := fmt.Sprint(recover()); got != "no log 7" || fmt.Sprint(why) != got {
			t.Errorf("goes on with %q, the process ends for %v", got, why)
		}
	}()
	fatal.New(slog.New(slog.DiscardHandler), "log", func(err error) { why = err }).Fatalf("no log %d", 7)
}
