package raftnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/wire"
)

// Requests between replicas or nodes, as a byte in front of them. On the wire: never reorder.
type kind byte

const (
	kindAppend     kind = 1
	kindVote       kind = 2
	kindPreVote    kind = 3
	kindTimeoutNow kind = 4
	kindSnapshot   kind = 5
	kindTerms      kind = 6  // of a node, not of a replica: what are these replicas' terms?
	kindAnswer     kind = 64 // the answer to the request of the same number
	kindFailure    kind = 65 // its error: a text
)

// formatVersion is the first byte of every message.
const formatVersion = 1

// frame is one request or answer on the stream between two nodes.
type frame struct {
	kind     kind
	id       uint64 // of the request within the stream
	group    uint32
	to, from string // replica ids; of a question for terms, none and the node's id
	body     []byte
	patient  bool // it may wait for others before it is sent; not part of the encoding
}

// append appends the frame's length and encoding.
func (f *frame) append(dst []byte) []byte {
	var head [64]byte
	h := append(head[:0], byte(f.kind))
	h = binary.AppendUvarint(h, f.id)
	h = binary.AppendUvarint(h, uint64(f.group))
	h = wire.AppendText(h, f.to)
	h = wire.AppendText(h, f.from)
	dst = binary.AppendUvarint(dst, uint64(len(h)+len(f.body)))
	return append(append(dst, h...), f.body...)
}

// readFrames hands take the frames that a message consists of, one after the other: a list of them could need many times
// the memory of the message. Their bodies alias it.
func readFrames(b []byte, take func(*frame) error) error {
	d := wire.NewDecoder(b)
	if version := d.Byte(); version != formatVersion && !d.Bad() {
		return fmt.Errorf("%w: message of format %d between nodes, this one reads %d: upgrade it", wire.ErrCorrupt, version, formatVersion)
	}
	for len(d.Rest()) > 0 {
		in := wire.NewDecoder(d.Bytes(d.Count(1)))
		f := frame{kind: kind(in.Byte()), id: in.Uvarint(), group: in.Uint32(), to: in.Text(), from: in.Text()}
		f.body = in.Rest()
		if in.Bad() {
			return fmt.Errorf("%w: frame between nodes", wire.ErrCorrupt)
		}
		if err := take(&f); err != nil {
			return err
		}
	}
	return d.End("frames between nodes")
}

func appendHeader(dst []byte, h raft.RPCHeader) []byte {
	dst = append(dst, byte(h.ProtocolVersion))
	return wire.AppendText(wire.AppendText(dst, string(h.ID)), string(h.Addr))
}

func decodeHeader(d *wire.Decoder) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersion(d.Byte()), ID: data(d), Addr: data(d)}
}

// data reads a length and so many bytes, nil for none.
func data(d *wire.Decoder) []byte {
	if b := d.Bytes(d.Count(1)); len(b) > 0 {
		return b
	}
	return nil
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// appendRequest encodes a request of the Raft library. The deprecated fields that the header replaces are left out.
func appendRequest(dst []byte, request any) (kind, []byte) {
	switch q := request.(type) {
	case *raft.AppendEntriesRequest:
		dst = appendHeader(dst, q.RPCHeader)
		dst = binary.AppendUvarint(dst, q.Term)
		dst = binary.AppendUvarint(dst, q.PrevLogEntry)
		dst = binary.AppendUvarint(dst, q.PrevLogTerm)
		dst = binary.AppendUvarint(dst, q.LeaderCommitIndex)
		dst = binary.AppendUvarint(dst, uint64(len(q.Entries)))
		for _, l := range q.Entries {
			dst = appendLog(dst, l)
		}
		return kindAppend, dst
	case *raft.RequestVoteRequest:
		dst = appendHeader(dst, q.RPCHeader)
		dst = binary.AppendUvarint(dst, q.Term)
		dst = binary.AppendUvarint(dst, q.LastLogIndex)
		dst = binary.AppendUvarint(dst, q.LastLogTerm)
		return kindVote, append(dst, boolByte(q.LeadershipTransfer))
	case *raft.RequestPreVoteRequest:
		dst = appendHeader(dst, q.RPCHeader)
		dst = binary.AppendUvarint(dst, q.Term)
		dst = binary.AppendUvarint(dst, q.LastLogIndex)
		return kindPreVote, binary.AppendUvarint(dst, q.LastLogTerm)
	case *raft.TimeoutNowRequest:
		return kindTimeoutNow, appendHeader(dst, q.RPCHeader)
	case *raft.InstallSnapshotRequest:
		dst = appendHeader(dst, q.RPCHeader)
		dst = append(dst, byte(q.SnapshotVersion))
		dst = binary.AppendUvarint(dst, q.Term)
		dst = binary.AppendUvarint(dst, q.LastLogIndex)
		dst = binary.AppendUvarint(dst, q.LastLogTerm)
		dst = wire.AppendText(dst, string(q.Configuration))
		dst = binary.AppendUvarint(dst, q.ConfigurationIndex)
		dst = wire.AppendText(dst, string(q.Peers))
		return kindSnapshot, binary.AppendUvarint(dst, uint64(q.Size))
	}
	panic(fmt.Sprintf("raftnet: no encoding for %T", request))
}

func appendLog(dst []byte, l *raft.Log) []byte {
	dst = append(dst, byte(l.Type))
	dst = binary.AppendUvarint(dst, l.Index)
	dst = binary.AppendUvarint(dst, l.Term)
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	dst = binary.AppendVarint(dst, at)
	dst = wire.AppendText(dst, string(l.Extensions))
	dst = binary.AppendUvarint(dst, uint64(len(l.Data)))
	return append(dst, l.Data...)
}

const (
	minLogBytes = 6
	// maxTerm is far above what elections get to. A replica takes over any term that it is told: with the last one there is,
	// its group could never elect again.
	maxTerm = 1 << 62
	// maxLogs is far above what Raft sends at once; it keeps a message of tiny entries from growing in memory.
	maxLogs = 8192
)

func decodeLog(d *wire.Decoder) raft.Log {
	l := raft.Log{Type: raft.LogType(d.Byte()), Index: d.Uvarint(), Term: d.Uvarint()}
	if at := d.Varint(); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	l.Extensions, l.Data = data(d), data(d)
	return l
}

// checkLog refuses an entry that Raft would panic over: it trusts its peers.
func checkLog(l *raft.Log, index uint64) error {
	switch l.Type {
	case raft.LogCommand, raft.LogNoop, raft.LogBarrier:
	case raft.LogConfiguration:
		if !readableConfiguration(l.Data) {
			return fmt.Errorf("%w: configuration of a group", wire.ErrCorrupt)
		}
	default:
		return fmt.Errorf("%w: log entry of type %d", wire.ErrCorrupt, l.Type)
	}
	if l.Index != index {
		return fmt.Errorf("%w: log entry %d in the place of %d", wire.ErrCorrupt, l.Index, index)
	}
	return nil
}

// readableConfiguration tells whether raft.DecodeConfiguration reads b, which otherwise panics.
func readableConfiguration(b []byte) (ok bool) {
	defer func() { ok = recover() == nil }()
	raft.DecodeConfiguration(b)
	return true
}

// decodeRequest is the inverse of appendRequest. The request aliases b.
func decodeRequest(k kind, b []byte) (any, error) {
	d := wire.NewDecoder(b)
	h := decodeHeader(&d)
	var request any
	switch k {
	case kindAppend:
		q := &raft.AppendEntriesRequest{
			RPCHeader: h, Term: d.Uvarint(), PrevLogEntry: d.Uvarint(), PrevLogTerm: d.Uvarint(), LeaderCommitIndex: d.Uvarint(),
		}
		n := d.Count(minLogBytes)
		if n > maxLogs {
			return nil, fmt.Errorf("%w: append of %d entries", wire.ErrCorrupt, n)
		}
		if n > 0 {
			logs := make([]raft.Log, n)
			q.Entries = make([]*raft.Log, n)
			for i := range logs {
				logs[i] = decodeLog(&d)
				if err := checkLog(&logs[i], q.PrevLogEntry+uint64(i)+1); err != nil {
					return nil, err
				}
				q.Entries[i] = &logs[i]
			}
		}
		request = q
	case kindVote:
		request = &raft.RequestVoteRequest{
			RPCHeader: h, Term: d.Uvarint(), LastLogIndex: d.Uvarint(), LastLogTerm: d.Uvarint(), LeadershipTransfer: d.Byte() == 1,
		}
	case kindPreVote:
		request = &raft.RequestPreVoteRequest{RPCHeader: h, Term: d.Uvarint(), LastLogIndex: d.Uvarint(), LastLogTerm: d.Uvarint()}
	case kindTimeoutNow:
		request = &raft.TimeoutNowRequest{RPCHeader: h}
	case kindSnapshot:
		q := &raft.InstallSnapshotRequest{
			RPCHeader: h, SnapshotVersion: raft.SnapshotVersion(d.Byte()), Term: d.Uvarint(),
			LastLogIndex: d.Uvarint(), LastLogTerm: d.Uvarint(), Configuration: data(&d), ConfigurationIndex: d.Uvarint(), Peers: data(&d),
		}
		size := d.Uvarint()
		if size > 1<<62 || q.SnapshotVersion > 0 && !readableConfiguration(q.Configuration) {
			d.Fail()
		}
		q.Size, q.Leader = int64(size), h.Addr
		request = q
	default:
		return nil, fmt.Errorf("%w: request of kind %d between nodes", wire.ErrCorrupt, k)
	}
	if term := termOf(request); term > maxTerm {
		return nil, fmt.Errorf("%w: term %d", wire.ErrCorrupt, term)
	}
	return request, d.End("request between nodes")
}

func termOf(request any) uint64 {
	switch q := request.(type) {
	case *raft.AppendEntriesRequest:
		return q.Term
	case *raft.RequestVoteRequest:
		return q.Term
	case *raft.RequestPreVoteRequest:
		return q.Term
	case *raft.InstallSnapshotRequest:
		return q.Term
	}
	return 0
}

// appendAnswer encodes what the Raft library answered.
func appendAnswer(dst []byte, answer any) ([]byte, error) {
	switch a := answer.(type) {
	case *raft.AppendEntriesResponse:
		dst = appendHeader(dst, a.RPCHeader)
		dst = binary.AppendUvarint(dst, a.Term)
		dst = binary.AppendUvarint(dst, a.LastLog)
		return append(dst, boolByte(a.Success), boolByte(a.NoRetryBackoff)), nil
	case *raft.RequestVoteResponse:
		dst = appendHeader(dst, a.RPCHeader)
		return append(binary.AppendUvarint(dst, a.Term), boolByte(a.Granted)), nil
	case *raft.RequestPreVoteResponse:
		dst = appendHeader(dst, a.RPCHeader)
		return append(binary.AppendUvarint(dst, a.Term), boolByte(a.Granted)), nil
	case *raft.TimeoutNowResponse:
		return appendHeader(dst, a.RPCHeader), nil
	case *raft.InstallSnapshotResponse:
		dst = appendHeader(dst, a.RPCHeader)
		return append(binary.AppendUvarint(dst, a.Term), boolByte(a.Success)), nil
	}
	return nil, fmt.Errorf("no encoding for %T", answer)
}

// decodeAnswer is the inverse of appendAnswer, into the response that the Raft library gave.
func decodeAnswer(b []byte, answer any) error {
	d := wire.NewDecoder(b)
	h := decodeHeader(&d)
	var term uint64
	switch a := answer.(type) {
	case *raft.AppendEntriesResponse:
		*a = raft.AppendEntriesResponse{RPCHeader: h, Term: d.Uvarint(), LastLog: d.Uvarint(), Success: d.Byte() == 1, NoRetryBackoff: d.Byte() == 1}
		term = a.Term
	case *raft.RequestVoteResponse:
		*a = raft.RequestVoteResponse{RPCHeader: h, Term: d.Uvarint(), Granted: d.Byte() == 1}
		term = a.Term
	case *raft.RequestPreVoteResponse:
		*a = raft.RequestPreVoteResponse{RPCHeader: h, Term: d.Uvarint(), Granted: d.Byte() == 1}
		term = a.Term
	case *raft.TimeoutNowResponse:
		*a = raft.TimeoutNowResponse{RPCHeader: h}
	case *raft.InstallSnapshotResponse:
		*a = raft.InstallSnapshotResponse{RPCHeader: h, Term: d.Uvarint(), Success: d.Byte() == 1}
		term = a.Term
	default:
		return errors.New("unknown answer")
	}
	if term > maxTerm {
		return fmt.Errorf("%w: term %d in an answer", wire.ErrCorrupt, term)
	}
	return d.End("answer between nodes")
}
