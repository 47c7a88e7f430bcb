package models

import (
	"fmt"
	"strings"

	"github.com/anishathalye/porcupine"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

// aloneUser begins the names of users whose sessions end one by one, by who ends them, and keep their tokens: what happens
// to one has nothing to do with the others, and porcupine can judge it.
const aloneUser = "alone-"

// phase is where a session is.
type phase uint8

const (
	absent phase = iota
	living
	ended
)

var phaseNames = [...]string{"absent", "living", "ended"}

// sessionSequences has a part for each session of such users.
func sessionSequences() Sequences {
	return Sequences{
		Key: func(op *history.Op) (string, bool) {
			in, ok := op.Input.(SessionOp)
			id := in.Session
			if out, told := op.Output.(SessionAnswer); told && in.Kind == KindLogin {
				id = out.Session
			}
			return id, ok && id != "" && strings.HasPrefix(in.User, aloneUser) && in.Stale == 0 && !in.Forged
		},
		Model: func(_ string, ops []*history.Op) (porcupine.Model, bool) {
			for _, op := range ops {
				switch op.Input.(SessionOp).Kind {
				case KindLogin, KindValidate, KindGet, KindRevoke, KindLogout:
				default:
					return porcupine.Model{}, false
				}
			}
			return SessionSequence(), true
		},
	}
}

// SessionSequence is what one session does, for checks that only know what clients saw: operations are *history.Op, and
// those of unknown outcome may take effect at any time.
func SessionSequence() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return absent },
		Step: func(state, input, _ any) (bool, any) { return state.(phase).step(input.(*history.Op)) },
		DescribeOperation: func(input, _ any) string {
			op := input.(*history.Op)
			in, _ := op.Input.(SessionOp)
			out, told := op.Output.(SessionAnswer)
			if !told {
				return fmt.Sprintf("%s → %s", in.Kind, op.Outcome)
			}
			return fmt.Sprintf("%s → valid %v %s, found %v %s, %d ended", in.Kind, out.Valid, out.Reason, out.Found, out.Ended, out.N)
		},
		DescribeState: func(state any) string { return phaseNames[state.(phase)] },
	}
}

func (p phase) step(op *history.Op) (bool, any) {
	in, _ := op.Input.(SessionOp)
	out, told := op.Output.(SessionAnswer)
	switch {
	case op.Outcome == history.Failed:
		return true, p
	case in.Kind == KindLogin:
		return p == absent, living
	case in.Kind == KindValidate:
		return !told || out.Valid == (p == living), p
	case in.Kind == KindGet:
		return !told || out.lives() == (p == living), p
	case p == living: // it is ended
		return !told || out.N == 1, ended
	}
	return !told || out.N == 0, p
}
