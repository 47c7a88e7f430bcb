package bolt

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/hashicorp/raft"
)

// BoltDB has no checksums: a bit that flips in an entry or in a vote would be believed. So each has a CRC-32C of its own, of
// where it belongs and what Raft makes of it: an entry's at the end of its extensions, which hashicorp/raft leaves to such
// layers, and a value's behind it. Not covered is the number of a page that changes so that it leads to what that page was before:
// it may still be in the file.
const sumBytes = crc32.Size

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (l *log) sum(e *raft.Log, extensions []byte) uint32 {
	b := make([]byte, 0, 64)
	b = binary.BigEndian.AppendUint32(b, l.group)
	b = binary.BigEndian.AppendUint64(b, e.Index)
	b = binary.BigEndian.AppendUint64(b, e.Term)
	b = append(b, byte(e.Type))
	b = binary.BigEndian.AppendUint64(b, uint64(len(extensions)))
	sum := crc32.Checksum(b, castagnoli)
	return crc32.Update(crc32.Update(sum, castagnoli, extensions), castagnoli, e.Data)
}

// seal returns an entry as it is stored.
func (l *log) seal(e *raft.Log) raft.Log {
	sealed := *e
	sealed.Extensions = binary.BigEndian.AppendUint32(slices.Clip(e.Extensions), l.sum(e, e.Extensions))
	return sealed
}

// open checks a stored entry and makes it what it was.
func (l *log) open(index uint64, e *raft.Log) error {
	n := len(e.Extensions) - sumBytes
	if n < 0 || e.Index != index || binary.BigEndian.Uint32(e.Extensions[n:]) != l.sum(e, e.Extensions[:n]) {
		return l.corrupt("checksum of entry %d", index)
	}
	if e.Extensions = e.Extensions[:n:n]; n == 0 {
		e.Extensions = nil
	}
	return nil
}

func (l *log) valueSum(key, value []byte) uint32 {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 64), l.group)
	b = binary.BigEndian.AppendUint64(b, uint64(len(key)))
	return crc32.Update(crc32.Checksum(append(b, key...), castagnoli), castagnoli, value)
}

func (l *log) sealValue(key, value []byte) []byte {
	return binary.BigEndian.AppendUint32(slices.Clip(value), l.valueSum(key, value))
}

func (l *log) openValue(key, stored []byte) ([]byte, error) {
	n := len(stored) - sumBytes
	if n < 0 || binary.BigEndian.Uint32(stored[n:]) != l.valueSum(key, stored[:n]) {
		return nil, l.corrupt("checksum of %q", key)
	}
	return stored[:n:n], nil
}

// verify reads entries, so that damage is found when a node starts, and not when they are wanted.
func (l *log) verify(entries []uint64) error {
	for _, index := range entries {
		if err := l.GetLog(index, new(raft.Log)); err != nil {
			return err
		}
	}
	return nil
}

// keyTerm is what hashicorp/raft calls the newest term that it knows. It comes before any other value and any entry.
const keyTerm = "CurrentTerm"

// plain tells that a log is one of before there were checksums, by its term. (Damage does not make a value shorter: what comes
// after it in its page would not follow.)
func plain(key, stored []byte) bool { return string(key) == keyTerm && len(stored) == 8 }

// adoptAtOnce is how many entries are stored in one commit.
const adoptAtOnce = 256

// adopt gives a log of before there were checksums those that it lacks. The term comes last: until it has one, this is done
// again.
func (l *log) adopt(entries []uint64) error {
	if l.p.opts.ReadOnly {
		return errors.New("it is of a build before logs had checksums: start the node once, it adds them")
	}
	var sealed []*raft.Log
	for i, index := range entries {
		var stored, checked raft.Log
		if err := l.BoltStore.GetLog(index, &stored); err != nil {
			return err
		}
		if checked = stored; l.open(index, &checked) != nil {
			e := l.seal(&stored)
			sealed = append(sealed, &e)
		}
		if len(sealed) == adoptAtOnce || i == len(entries)-1 {
			if err := l.BoltStore.StoreLogs(sealed); err != nil {
				return err
			}
			sealed = nil
		}
	}
	for _, key := range []string{keyVote, keyTerm} {
		stored, err := l.BoltStore.Get([]byte(key))
		if errors.Is(err, raftboltdb.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if _, err := l.openValue([]byte(key), stored); err != nil {
			if err := l.BoltStore.Set([]byte(key), l.sealValue([]byte(key), stored)); err != nil {
				return err
			}
		}
	}
	return nil
}
