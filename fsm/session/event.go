package session

import (
	"encoding/binary"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// EventKind is what happened to a session. Part of the protocol between nodes: never reorder.
type EventKind uint8

// The kinds of events.
const (
	EventCreated EventKind = 1
	EventEnded   EventKind = 2 // Reason tells why
	EventChanged EventKind = 3 // its tokens, its attributes or its marks: what was known of it is old
	EventMarked  EventKind = 4 // Mark tells what was noticed
)

// Event tells those who watch a shard what was applied. Events are in the order of the log.
type Event struct {
	Kind    EventKind
	Session Key
	Reason  Reason
	Mark    Sign
}

func (e Event) append(dst []byte) []byte {
	dst = e.Session.Append(append(dst, byte(e.Kind)))
	return append(dst, byte(e.Reason), byte(e.Mark))
}

// DecodeEvent parses the body of an event of this type.
func DecodeEvent(b []byte) (e Event, err error) {
	d := wire.NewDecoder(b)
	e.Kind, e.Session = EventKind(d.Byte()), decodeKey(&d)
	e.Reason, e.Mark = Reason(d.Byte()), Sign(d.Byte())
	return e, d.End("session event")
}

// Sign is something about a session that should not be. Stored: never reorder.
type Sign uint8

// The signs.
const (
	NetworkChanged Sign = 1
	DeviceChanged  Sign = 2
	Burst          Sign = 3 // validated more often than its policy expects
	TwoNetworks    Sign = 4 // used from two networks in turns, faster than anybody moves
)

func appendMillis(dst []byte, m fsm.Millis) []byte { return binary.AppendUvarint(dst, uint64(m)) }

// decodeMillis reads a span of at most MaxLife.
func decodeMillis(d *wire.Decoder) fsm.Millis {
	n := d.Uvarint()
	if n > uint64(MaxLife) {
		d.Fail()
		return 0
	}
	return fsm.Millis(n)
}
