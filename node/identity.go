package node

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// identity is who the owner of a data directory is. A wiped directory is a new node: an id is never used again, or a
// node could vote twice.
type identity struct {
	NodeID string `json:"node_id"`
	// ClusterID is empty until the node was taken in.
	ClusterID string `json:"cluster_id,omitempty"`
	// RaftLog is how the directory keeps the shards' Raft logs. With another one they, and the votes, would seem empty.
	RaftLog string `json:"raft_log,omitempty"`
}

// The kinds of Raft logs, as identity.RaftLog and the command line call them.
const (
	logPebble = "pebble"
	logBolt   = "boltdb"
)

// useLog makes sure that the directory has a kind of log; changed tells that it is new to the identity.
func (id *identity) useLog(kind string) (changed bool, err error) {
	switch id.RaftLog {
	case kind:
		return false, nil
	case "":
		id.RaftLog = kind
		return true, nil
	}
	return false, fmt.Errorf("this data directory keeps its Raft logs in %s, and --raft-log=%s would not find them: start with --raft-log=%s, or as a new node with an empty directory",
		id.RaftLog, kind, id.RaftLog)
}

const identityFile = "node.json"

// newID returns 128 random bits in hexadecimal.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand stops the process instead
	return hex.EncodeToString(b[:])
}

// loadIdentity reads the identity of a data directory; found is false for a new one.
func loadIdentity(filesystem vfs.FS, dir string) (id identity, found bool, err error) {
	path := filesystem.PathJoin(dir, identityFile)
	f, err := filesystem.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return identity{NodeID: newID()}, false, nil
	}
	if err != nil {
		return identity{}, false, fmt.Errorf("open %s: %w", path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return identity{}, false, fmt.Errorf("read %s: %w", path, err)
	}
	if id, err = parseIdentity(b); err != nil {
		return identity{}, false, fmt.Errorf("%s is damaged: %w: %s", path, err, adviceLost)
	}
	return id, true, nil
}

// sealed is what the file holds: the identity and a checksum over it. With a bit of it changed the node would be another
// one, or in another cluster.
type sealed struct {
	identity
	Checksum string `json:"checksum,omitempty"`
}

// checksumOf is over all fields but the checksum, also those that a later version adds: CRC-32C of their JSON without
// blanks, ordered by name.
func checksumOf(b []byte) (string, error) {
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return "", err
	}
	delete(fields, "checksum")
	canonical, err := json.Marshal(fields)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%08x", crc32.Checksum(canonical, crc32.MakeTable(crc32.Castagnoli))), nil
}

func parseIdentity(b []byte) (identity, error) {
	var file sealed
	if err := json.Unmarshal(b, &file); err != nil {
		return identity{}, err
	}
	sum, err := checksumOf(b)
	switch {
	case err != nil:
		return identity{}, err
	case file.Checksum != "" && file.Checksum != sum: // the first versions wrote none
		return identity{}, fmt.Errorf("its checksum is %s, by what is in it %s", file.Checksum, sum)
	case len(file.NodeID) != 32:
		return identity{}, fmt.Errorf("node_id has %d digits, not 32", len(file.NodeID))
	}
	return file.identity, nil
}

// save writes the identity so that a crash leaves the old one or the new one.
func (id identity) save(filesystem vfs.FS, dir string) error {
	b, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode the node's identity: %w", err)
	}
	file := sealed{identity: id}
	if file.Checksum, err = checksumOf(b); err != nil {
		return fmt.Errorf("encode the node's identity: %w", err)
	}
	if b, err = json.MarshalIndent(file, "", "  "); err != nil {
		return fmt.Errorf("encode the node's identity: %w", err)
	}
	if err := replaceFile(filesystem, dir, identityFile, append(b, '\n')); err != nil {
		return fmt.Errorf("write the node's identity: %w", err)
	}
	return nil
}

// replaceFile writes a file of a directory so that a crash leaves the old one or the new one.
func replaceFile(filesystem vfs.FS, dir, name string, b []byte) error {
	path := filesystem.PathJoin(dir, name)
	if err := writeSynced(filesystem, path+".new", b); err != nil {
		return err
	}
	// If we stop here, the next start removes nothing and writes the file again.
	if err := filesystem.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(filesystem, dir)
}

// makeDir makes a directory that a power cut does not take away again, with all that is in it: a directory is an entry of
// the one above, which needs a sync too.
func makeDir(filesystem vfs.FS, dir string) error {
	above := []string{filesystem.PathDir(dir)}
	for {
		last := above[len(above)-1]
		if _, err := filesystem.Stat(last); !errors.Is(err, fs.ErrNotExist) || filesystem.PathDir(last) == last {
			break
		}
		above = append(above, filesystem.PathDir(last))
	}
	if err := filesystem.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, parent := range above {
		if err := syncDir(filesystem, parent); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(filesystem vfs.FS, dir string) error {
	d, err := filesystem.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	return errors.Join(d.Sync(), d.Close())
}

func writeSynced(filesystem vfs.FS, path string, b []byte) error {
	f, err := filesystem.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}
