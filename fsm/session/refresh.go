package session

import (
	"encoding/binary"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/plant"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// RefreshRequest exchanges a refresh token for the next one and a new access token. A refresh token has two secrets: one
// that all of its family share, which proves that the shard gave it out some time, and one of its own. So a token that is
// too old is told from one that somebody made up, and only the former ends the session (RFC 9700, section 4.14.2).
type RefreshRequest struct {
	Session       Key
	Family, Token Hash // presented
	Access, Next  Hash // to come
}

// Append appends the encoding.
func (q *RefreshRequest) Append(dst []byte) []byte {
	dst = q.Session.Append(dst)
	for _, h := range [...]*Hash{&q.Family, &q.Token, &q.Access, &q.Next} {
		dst = append(dst, h[:]...)
	}
	return dst
}

// Decode implements the requests of package fsm.
func (q *RefreshRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Session = decodeKey(&d)
	q.Family, q.Token, q.Access, q.Next = decodeHash(&d), decodeHash(&d), decodeHash(&d), decodeHash(&d)
	return d.End("refresh session")
}

// Verdict is what a shard says of a token. Part of the log's results: never reorder.
type Verdict uint8

// The verdicts.
const (
	Valid         Verdict = 1
	UnknownToken  Verdict = 2 // made up, of a session that is long gone, or rotated away long ago
	Ended         Verdict = 3 // Reason tells why
	IdleTooLong   Verdict = 4
	TimeOver      Verdict = 5
	RotatedAway   Verdict = 6
	StepUp        Verdict = 7 // the user has to prove again who they are
	ReusedToken   Verdict = 8 // and the session has ended for it
	TooManyAtOnce Verdict = 9 // requests with this refresh token: use what one of them got
)

// RefreshResult tells what became of a refresh.
type RefreshResult struct {
	Verdict      Verdict
	Reason       Reason // if Ended
	Until        fsm.Time
	RefreshUntil fsm.Time
}

// Append appends the encoding.
func (r *RefreshResult) Append(dst []byte) []byte {
	dst = append(dst, byte(r.Verdict), byte(r.Reason))
	return binary.AppendVarint(binary.AppendVarint(dst, int64(r.Until)), int64(r.RefreshUntil))
}

// Decode parses the encoding.
func (r *RefreshResult) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	r.Verdict, r.Reason = Verdict(d.Byte()), Reason(d.Byte())
	r.Until, r.RefreshUntil = fsm.Time(d.Varint()), fsm.Time(d.Varint())
	return d.End("refreshed session")
}

func refresh(tx *fsm.Tx, q *RefreshRequest) (*RefreshResult, error) {
	r, err := load(tx, q.Session)
	if err != nil {
		return nil, err
	}
	now := tx.Now()
	if r == nil || r.refreshUntil == 0 || !has([]Hash{r.family}, &q.Family) {
		return &RefreshResult{Verdict: UnknownToken}, nil
	}
	if now >= r.refreshUntil {
		return &RefreshResult{Verdict: TimeOver}, nil
	}
	switch {
	case has(r.refresh.now, &q.Token):
		r.refresh.rotate(q.Next, now)
		r.access.rotate(q.Access, now)
		r.issued = now
	case has(r.refresh.before, &q.Token) && r.refresh.inGrace(now), plant.On(plant.ForgiveReuse):
		// Two requests raced with the same token: both get a pair, and either pair leads on.
		if r.refresh.full() || r.access.full() {
			return &RefreshResult{Verdict: TooManyAtOnce}, nil
		}
		r.refresh.add(q.Next)
		r.access.add(q.Access)
	default:
		if err := end(tx, q.Session, r, Reused); err != nil {
			return nil, err
		}
		return &RefreshResult{Verdict: ReusedToken}, nil
	}
	r.seen = now
	r.until = max(r.until, min(now+fsm.Time(r.life), r.refreshUntil)) // never earlier: the expiry index would be late
	r.put(tx, q.Session)
	tx.Emit(Event{Kind: EventChanged, Session: q.Session}.append(nil))
	return &RefreshResult{Verdict: Valid, Until: r.until, RefreshUntil: r.refreshUntil}, nil
}

// ReissueRequest gives the caller of a create, refresh or rotate, whose answer was lost with the tokens in it, tokens of
// the same standing. The lost ones count on: who knows if they were lost.
type ReissueRequest struct {
	Session Key
	// At is when the command was executed. What was exchanged since is not given out again.
	At      fsm.Time
	Access  Hash
	Refresh Hash // of a refresh token of the same family, zero for none
}

// Append appends the encoding.
func (q *ReissueRequest) Append(dst []byte) []byte {
	dst = binary.AppendVarint(q.Session.Append(dst), int64(q.At))
	return append(append(dst, q.Access[:]...), q.Refresh[:]...)
}

// Decode implements the requests of package fsm.
func (q *ReissueRequest) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	q.Session, q.At, q.Access, q.Refresh = decodeKey(&d), fsm.Time(d.Varint()), decodeHash(&d), decodeHash(&d)
	return d.End("reissue tokens")
}

// Done is the answer of a command that changes one session: whether it was there.
type Done struct{ Found bool }

// Append appends the encoding.
func (r *Done) Append(dst []byte) []byte { return append(dst, bit(r.Found, 1)) }

// Decode parses the encoding.
func (r *Done) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	r.Found = d.Byte() == 1
	return d.End("changed session")
}

func bit(set bool, b byte) byte {
	if set {
		return b
	}
	return 0
}

func reissue(tx *fsm.Tx, q *ReissueRequest) (*Done, error) {
	r, err := load(tx, q.Session)
	if err != nil || r == nil {
		return &Done{}, err
	}
	withRefresh := q.Refresh != Hash{}
	if withRefresh && r.refreshUntil == 0 {
		return nil, fsm.Errorf(fsm.Conflict, "the session has no refresh tokens")
	}
	if q.At < r.issued {
		return nil, fsm.Errorf(fsm.Conflict, "the tokens were exchanged since")
	}
	if has(r.access.now, &q.Access) { // the same command, once more
		return &Done{true}, nil
	}
	if r.access.full() || withRefresh && r.refresh.full() {
		return nil, fsm.Errorf(fsm.Exhausted, "the answer was asked for %d times: begin another session", maxTokens)
	}
	r.access.add(q.Access)
	if withRefresh {
		r.refresh.add(q.Refresh)
	}
	r.put(tx, q.Session)
	return &Done{true}, nil
}
