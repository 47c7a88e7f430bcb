package raftlog

import (
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// prewriter gives Pebble write-ahead logs whose blocks have been written before. A sync of a file that grows has to make
// its new size and blocks durable too, in the file system's own journal, and takes half as long again. Pebble uses old
// files again, which is as good, but only once it has large ones: its first logs are small, and each use makes one a
// little longer. With a spare file of full size at hand, a log has its blocks from the start.
type prewriter struct {
	vfs.FS
	spare string // path of the spare file
	size  int64

	mu     sync.Mutex
	logs   int  // created so far
	ready  bool // the spare is complete and durable
	making bool
	closed bool
	stop   chan struct{} // closed with it
	work   sync.WaitGroup
}

// newPrewriter keeps a spare of size bytes in dir. A spare that was left there may be incomplete: it is not used but made
// anew, when one is needed. Who only reads changes nothing.
func newPrewriter(fs vfs.FS, dir string, size int64) *prewriter {
	return &prewriter{FS: fs, spare: fs.PathJoin(dir, "spare"), size: size, stop: make(chan struct{})}
}

func isLog(name string) bool { return strings.HasSuffix(name, ".log") }

// Create implements vfs.FS.
func (p *prewriter) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if isLog(name) {
		if f, err := p.take(name, category); f != nil || err != nil {
			return f, err
		}
	}
	return p.FS.Create(name, category)
}

// ReuseForWrite implements vfs.FS. A log that is too short makes room for the spare.
func (p *prewriter) ReuseForWrite(from, to string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if !isLog(to) || p.full(from) {
		return p.FS.ReuseForWrite(from, to, category)
	}
	f, err := p.take(to, category)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return p.FS.ReuseForWrite(from, to, category)
	}
	if err := p.Remove(from); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (p *prewriter) full(name string) bool {
	info, err := p.Stat(name)
	return err == nil && info.Size() >= p.size
}

// take makes the spare, if there is one, the log of that name, and has the next one made. The first log makes none: many
// a database never has a second.
func (p *prewriter) take(name string, category vfs.DiskWriteCategory) (f vfs.File, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ready {
		p.ready = false
		if f, err = p.FS.ReuseForWrite(p.spare, name, category); err != nil {
			return nil, err
		}
	}
	p.logs++
	if !p.making && !p.closed && p.logs > 1 {
		p.making = true
		p.work.Go(p.make)
	}
	return f, nil
}

// make writes a spare. Without one all goes on as it would have, so an error is nobody's concern: what is wrong with the
// disk shows in the log itself.
func (p *prewriter) make() {
	err := p.fill()
	p.mu.Lock()
	p.making, p.ready = false, err == nil
	p.mu.Unlock()
}

// A spare is written in small steps with pauses in between: a sync of the log waits for what else is on its way to the disk,
// and a spare that is written as fast as the disk can makes them late for a fifth of a second. So it takes about ten seconds.
// A log that is full before that is followed by one without a spare.
const (
	fillBytes = 64 << 10
	fillPause = 15 * time.Millisecond
)

func (p *prewriter) fill() (err error) {
	f, err := p.FS.Create(p.spare, "pebble-wal")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	zeros := make([]byte, min(fillBytes, p.size))
	for written := int64(0); written < p.size; written += int64(len(zeros)) {
		if written > 0 && p.stopped(fillPause) { // however long the step took: a slow disk needs more time for the log
			return errors.New("closed")
		}
		if _, err := f.Write(zeros); err != nil {
			return err
		}
		if err := f.SyncData(); err != nil {
			return err
		}
	}
	return f.Sync()
}

// stopped waits, and reports whether the prewriter was closed meanwhile.
func (p *prewriter) stopped(wait time.Duration) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-p.stop:
		return true
	case <-t.C:
		return false
	}
}

// close waits for what is being written.
func (p *prewriter) close() {
	p.mu.Lock()
	p.closed = true
	close(p.stop)
	p.mu.Unlock()
	p.work.Wait()
}
