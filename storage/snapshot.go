package storage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/storage/kv"
)

// A shard travels as a stream of sorted tables:
//
//	"HFS1", group (4 bytes), number of tables (4), then for each: length (8), CRC-32C (4), content
//
// All numbers are little-endian. The length of the stream is known before its first byte, as Raft wants it.
const (
	streamMagic       = "HFS1"
	streamHeaderBytes = 12
	tableHeaderBytes  = 12
	// tableBytes is about how large a table gets before the next one begins.
	tableBytes = 32 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var spoolNumber atomic.Uint64 // names of spool directories; never reused in a process

func (e *Engine) newSpool(kind string, group uint32) (string, error) {
	name := kind + "-" + strconv.Itoa(int(group)) + "-" + strconv.FormatUint(spoolNumber.Add(1), 10)
	dir := e.files.PathJoin(e.spool(), name)
	if err := e.files.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make spool directory: %w", err)
	}
	return dir, nil
}

// Export is a shard's content at one moment, to be read once. Close frees its files.
type Export struct {
	io.Reader
	// Size is the length of the stream in bytes.
	Size int64

	files []vfs.File
	fs    vfs.FS
	dir   string
}

// Export writes the shard's content of now to temporary files and returns the stream of them together with what read
// returned for the same moment: the caller reads the position that belongs to the content there. One export is built at
// a time; ctx ends the wait for others.
func (s *Shard) Export(ctx context.Context, read func(kv.Reader) error) (_ *Export, err error) {
	select {
	case s.e.exports <- struct{}{}:
		defer func() { <-s.e.exports }()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to export group %d: %w", s.group, ctx.Err())
	}
	s.e.opts.OnWork(true)
	defer s.e.opts.OnWork(false)
	x := &Export{fs: s.e.files}
	if x.dir, err = s.e.newSpool("out", s.group); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("export group %d: %w", s.group, err), x.Close())
		}
	}()
	v := s.View().(*view)
	defer v.Close()
	if err := read(v); err != nil {
		return nil, err
	}
	tables, err := s.writeTables(ctx, v, x.dir)
	if err != nil {
		return nil, err
	}
	return x, x.open(s.group, tables)
}

// writeTables writes the view as sorted tables of bounded size.
func (s *Shard) writeTables(ctx context.Context, v *view, dir string) ([]string, error) {
	it, err := v.snap.NewIter(&pebble.IterOptions{LowerBound: s.prefix, UpperBound: s.end})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var tables []string
	var w *sstable.Writer
	for ok := it.First(); ok; ok = it.Next() {
		if w == nil {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			path := s.e.files.PathJoin(dir, strconv.Itoa(len(tables))+".sst")
			f, err := s.e.files.Create(path, vfs.WriteCategoryUnspecified)
			if err != nil {
				return nil, err
			}
			w = sstable.NewWriter(objstorageprovider.NewFileWritable(f), sstable.WriterOptions{TableFormat: s.e.db.TableFormat()})
			tables = append(tables, path)
		}
		value, err := it.ValueAndErr()
		if err == nil {
			err = w.Set(it.Key(), value)
		}
		if err != nil {
			return nil, errors.Join(err, w.Close())
		}
		if w.Raw().EstimatedSize() >= tableBytes {
			if err := w.Close(); err != nil {
				return nil, err
			}
			w = nil
		}
	}
	if w != nil {
		if err := w.Close(); err != nil {
			return nil, err
		}
	}
	return tables, it.Error()
}

// open makes the stream out of the tables.
func (x *Export) open(group uint32, tables []string) error {
	header := append([]byte(streamMagic), make([]byte, streamHeaderBytes-len(streamMagic))...)
	binary.LittleEndian.PutUint32(header[4:], group)
	binary.LittleEndian.PutUint32(header[8:], uint32(len(tables)))
	parts := []io.Reader{bytes.NewReader(header)}
	x.Size = streamHeaderBytes
	for _, path := range tables {
		f, err := x.fs.Open(path)
		if err != nil {
			return err
		}
		x.files = append(x.files, f)
		sum := crc32.New(castagnoli)
		n, err := io.Copy(sum, f)
		if err != nil {
			return err
		}
		head := binary.LittleEndian.AppendUint64(nil, uint64(n))
		head = binary.LittleEndian.AppendUint32(head, sum.Sum32())
		parts = append(parts, bytes.NewReader(head), io.NewSectionReader(f, 0, n))
		x.Size += tableHeaderBytes + n
	}
	x.Reader = io.MultiReader(parts...)
	return nil
}

// Close removes the temporary files.
func (x *Export) Close() error {
	var errs []error
	for _, f := range x.files {
		errs = append(errs, f.Close())
	}
	x.files = nil
	return errors.Join(append(errs, x.fs.RemoveAll(x.dir))...)
}

// Install receives a stream that Export made and puts it in place of the shard's content. Until Apply returns, the old
// content stands, whatever happens; from then on the new one does.
type Install struct {
	s      *Shard
	dir    string
	file   vfs.File
	tables []string
}

// NewInstall begins to receive.
func (s *Shard) NewInstall() (*Install, error) {
	dir, err := s.e.newSpool("in", s.group)
	if err != nil {
		return nil, err
	}
	f, err := s.e.files.Create(s.e.files.PathJoin(dir, "stream"), vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("receive group %d: %w", s.group, err)
	}
	return &Install{s: s, dir: dir, file: f}, nil
}

// Write receives the next bytes of the stream. It copies them, because a vfs.File may use what it is given as scratch
// space, which an io.Writer must not.
func (in *Install) Write(b []byte) (int, error) { return in.file.Write(bytes.Clone(b)) }

// Finish checks that the stream is complete and intact. An error wraps ErrCorrupt if it is not.
func (in *Install) Finish() error {
	if in.file == nil {
		return nil
	}
	in.s.e.opts.OnWork(true)
	defer in.s.e.opts.OnWork(false)
	fs := in.s.e.files
	err := errors.Join(in.file.Sync(), in.file.Close())
	in.file = nil
	if err != nil {
		return fmt.Errorf("receive group %d: %w", in.s.group, err)
	}
	path := fs.PathJoin(in.dir, "stream")
	f, err := fs.Open(path)
	if err != nil {
		return fmt.Errorf("receive group %d: %w", in.s.group, err)
	}
	err = in.split(f)
	return errors.Join(err, f.Close(), fs.Remove(path))
}

// split cuts the stream into tables.
func (in *Install) split(r io.Reader) error {
	group, tables, err := readStreamHeader(r)
	if err != nil {
		return err
	}
	if group != in.s.group {
		return fmt.Errorf("%w: content of group %d sent for group %d", ErrCorrupt, group, in.s.group)
	}
	fs := in.s.e.files
	for i := range tables {
		path := fs.PathJoin(in.dir, strconv.Itoa(int(i))+".sst")
		f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			return fmt.Errorf("receive group %d: %w", in.s.group, err)
		}
		err = readTable(r, f)
		if err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		in.tables = append(in.tables, path)
	}
	if n, _ := io.ReadFull(r, make([]byte, 1)); n != 0 {
		return fmt.Errorf("%w: bytes after the last table", ErrCorrupt)
	}
	return nil
}

func readStreamHeader(r io.Reader) (group, tables uint32, err error) {
	var header [streamHeaderBytes]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, 0, unread("stream header", err)
	}
	if string(header[:4]) != streamMagic {
		return 0, 0, fmt.Errorf("%w: stream of format %q", ErrCorrupt, header[:4])
	}
	return binary.LittleEndian.Uint32(header[4:]), binary.LittleEndian.Uint32(header[8:]), nil
}

// unread says why a part of the stream was not received. A stream that ends early is not intact; a disk that fails says
// nothing about the stream.
func unread(part string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, part, err)
	}
	return fmt.Errorf("receive %s: %w", part, err)
}

// readTable copies the next table of the stream to w and checks it.
func readTable(r io.Reader, w io.Writer) error {
	var head [tableHeaderBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return unread("table header", err)
	}
	length := binary.LittleEndian.Uint64(head[:])
	if length > 1<<40 {
		return fmt.Errorf("%w: table of %d bytes", ErrCorrupt, length)
	}
	sum := crc32.New(castagnoli)
	if _, err := io.CopyN(io.MultiWriter(sum, w), r, int64(length)); err != nil {
		return unread(fmt.Sprintf("table of %d bytes", length), err)
	}
	if sum.Sum32() != binary.LittleEndian.Uint32(head[8:]) {
		return fmt.Errorf("%w: table checksum", ErrCorrupt)
	}
	return nil
}

// Apply puts the received content in place, atomically and durably.
func (in *Install) Apply() error {
	if in.file != nil {
		return errors.New("storage: install is not finished")
	}
	in.s.e.paced.Hurry() // as for Destroy
	defer in.s.e.paced.Relax()
	db := in.s.e.db
	var err error
	if len(in.tables) == 0 {
		err = db.Excise(context.Background(), in.s.span())
	} else {
		_, err = db.IngestAndExcise(context.Background(), slices.Clone(in.tables), nil, nil, in.s.span())
	}
	if err != nil {
		return fmt.Errorf("install group %d: %w", in.s.group, err)
	}
	in.s.e.sealManifest()
	// If we stop before this fence, the store reopens with the old content or the new one, never a mixture.
	if err := in.s.e.Sync(); err != nil {
		return err
	}
	// The new content is in place: what is left of its files is removed at the next start at the latest.
	if err := in.Discard(); err != nil {
		in.s.e.opts.Logger.Warn("could not remove the files of an installed state", "group", in.s.group, "error", err)
	}
	return nil
}

// Discard removes what was received. It may be called at any time, also after Apply.
func (in *Install) Discard() error {
	var err error
	if in.file != nil {
		err = in.file.Close()
		in.file = nil
	}
	return errors.Join(err, in.s.e.files.RemoveAll(in.dir))
}
