package models

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

// saidAt is an operation on sessions from a moment to a millisecond later, in milliseconds.
func saidAt(at int, in SessionOp, out SessionAnswer) history.Op {
	call := time.Duration(at) * time.Millisecond
	return history.Op{Process: "p", Call: call, Return: call + time.Millisecond, Outcome: history.Definite, Input: in, Output: out}
}

// silent is an operation of unknown outcome.
func silent(op history.Op) history.Op {
	op.Outcome, op.Output, op.Return = history.Unknown, nil, time.Hour
	return op
}

const theUser = aloneUser + "0"

func loginAt(at int, id string) history.Op {
	return saidAt(at, SessionOp{Kind: KindLogin, User: theUser}, SessionAnswer{Session: id})
}

func oneOfTwoAt(at int, id string) history.Op {
	return saidAt(at, SessionOp{Kind: KindLogin, User: theUser, Most: 2, Evict: true}, SessionAnswer{Session: id})
}

func validAt(at int, id string) history.Op {
	return saidAt(at, SessionOp{Kind: KindValidate, User: theUser, Session: id}, SessionAnswer{Session: id, Valid: true})
}

func invalidAt(at int, id, reason string) history.Op {
	return saidAt(at, SessionOp{Kind: KindValidate, User: theUser, Session: id}, SessionAnswer{Reason: reason})
}

func rememberedAt(at int, id string, stale time.Duration) history.Op {
	return saidAt(at, SessionOp{Kind: KindValidate, User: theUser, Session: id, Stale: stale}, SessionAnswer{Session: id, Valid: true})
}

func revokeAt(at int, id string, n int) history.Op {
	return saidAt(at, SessionOp{Kind: KindRevoke, User: theUser, Session: id}, SessionAnswer{N: n})
}

func readSession(at int, id string, found bool, ended string) history.Op {
	return saidAt(at, SessionOp{Kind: KindGet, User: theUser, Session: id}, SessionAnswer{Found: found, Ended: ended})
}

func refreshAt(at int, id, token, next, reason string) history.Op {
	return saidAt(at, SessionOp{Kind: KindRefresh, User: theUser, Session: id, Token: token}, SessionAnswer{Refresh: next, Reason: reason})
}

func setAt(at int, id string, from *uint32, version uint32, value string) history.Op {
	return saidAt(at, SessionOp{Kind: KindSet, User: theUser, Session: id, Version: from, Value: value}, SessionAnswer{Session: id, Version: version})
}

func savedAt(at int, kind string, found bool) history.Op {
	return saidAt(at, SessionOp{Kind: kind, Token: "t"}, SessionAnswer{Found: found})
}

// It takes no log: what callers were told is enough.
func TestCallersWhoWereToldWrongOfSessionsAreFound(t *testing.T) {
	logout := func(at int, id string, everywhere bool, n int) history.Op {
		return saidAt(at, SessionOp{Kind: KindLogout, User: theUser, Session: id, Everywhere: everywhere}, SessionAnswer{N: n})
	}
	revokeUser := func(at int, except string) history.Op {
		return saidAt(at, SessionOp{Kind: KindRevokeUser, User: theUser, Except: except}, SessionAnswer{N: 1})
	}
	list := func(at int, ids ...string) history.Op {
		return saidAt(at, SessionOp{Kind: KindList, User: theUser}, SessionAnswer{List: ids})
	}
	forged := validAt(10, "a")
	forged.Input = SessionOp{Kind: KindValidate, User: theUser, Session: "a", Forged: true}
	readAt := func(at int, version uint32, value string) history.Op {
		op := validAt(at, "a")
		op.Output = SessionAnswer{Session: "a", Valid: true, Version: version, Value: value}
		return op
	}
	eraseAt := func(at int) history.Op {
		return saidAt(at, SessionOp{Kind: KindErase, User: theUser}, SessionAnswer{})
	}
	historyAt := func(at int, pairs ...string) history.Op {
		var out SessionAnswer
		for i := 0; i < len(pairs); i += 2 {
			out.List, out.Ends = append(out.List, pairs[i]), append(out.Ends, pairs[i+1])
		}
		return saidAt(at, SessionOp{Kind: KindHistory, User: theUser}, out)
	}
	loginOf := func(at int, id, login string) history.Op {
		return saidAt(at, SessionOp{Kind: KindLogin, User: theUser, Login: login}, SessionAnswer{Session: id})
	}
	wholeAt := func(at int, id, login string, n int) history.Op {
		return saidAt(at, SessionOp{Kind: KindLogout, User: theUser, Session: id, Login: login, WholeLogin: true}, SessionAnswer{N: n})
	}
	ofLogin := func(at int, login string) history.Op {
		return saidAt(at, SessionOp{Kind: KindRevokeUser, User: theUser, Login: login}, SessionAnswer{N: 1})
	}
	oneOfTwoDevices := func(at int, id, device string) history.Op {
		return saidAt(at, SessionOp{Kind: KindLogin, User: theUser, Device: device, MostDevices: 2, Evict: true}, SessionAnswer{Session: id})
	}
	devicesAt := func(at int, devices ...string) history.Op {
		return saidAt(at, SessionOp{Kind: KindList, User: theUser}, SessionAnswer{List: []string{"a", "b", "c"}[:len(devices)], Devices: devices})
	}
	many := []history.Op{loginAt(0, "a"), revokeAt(2, "a", 1)}
	for i := range mostPast {
		many = append(many, loginAt(10+i, fmt.Sprint("b", i)))
	}
	for _, test := range []struct {
		name   string
		ops    []history.Op
		broken bool
	}{
		{"it is there", []history.Op{loginAt(0, "a"), readSession(10, "a", true, ""), list(20, "a"), revokeAt(30, "a", 1)}, false},
		{"it is not there, and nothing ended it", []history.Op{loginAt(0, "a"), readSession(10, "a", false, ""), revokeAt(30, "a", 1)}, true},
		{"it is not listed, and nothing ended it", []history.Op{loginAt(0, "a"), list(10), revokeAt(30, "a", 1)}, true},
		{"it is there after its end", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), readSession(30, "a", true, "")}, true},
		{"it was seen to have ended, and counts", []history.Op{loginAt(0, "a"), silent(revokeAt(20, "a", 1)), readSession(30, "a", true, "revoked"), validAt(40, "a")}, true},
		{"it is forgotten", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), readSession(30, "a", false, "")}, true},
		{"it is not in the history", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), historyAt(30)}, true},
		{"it is in the history", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), historyAt(30, "a", "revoked")}, false},
		{"there as if somebody had done something else", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), historyAt(30, "a", "logged_out")}, true},
		{"it ended before somebody ended it", []history.Op{loginAt(0, "a"), historyAt(10, "a", "revoked"), revokeAt(20, "a", 1)}, true},
		{"one of two ended it", []history.Op{loginAt(0, "a"), silent(logout(10, "a", false, 1)), silent(revokeAt(20, "a", 1)), readSession(30, "a", true, "logged_out")}, false},
		{"evicted, and nobody came", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), readSession(30, "a", true, "evicted")}, true},
		{"so many followed it", append(slices.Clone(many), historyAt(1000)), false},
		{"one fewer followed it", append(slices.Clone(many[:len(many)-1]), historyAt(1000)), true},
		{"erased", []history.Op{loginAt(0, "a"), loginAt(2, "b"), revokeAt(5, "a", 1), eraseAt(10), historyAt(20), list(30), readSession(40, "a", false, ""), readSession(50, "b", false, "")}, false},
		{"erased, and counts", []history.Op{loginAt(0, "a"), eraseAt(10), validAt(20, "a")}, true},
		{"erased, and there", []history.Op{loginAt(0, "a"), eraseAt(10), readSession(20, "a", true, "erased")}, true},
		{"erased, and in the history", []history.Op{loginAt(0, "a"), revokeAt(5, "a", 1), eraseAt(10), historyAt(20, "a", "revoked")}, true},
		{"erased, and in the list", []history.Op{loginAt(0, "a"), eraseAt(10), list(20, "a")}, true},
		{"erased, maybe", []history.Op{loginAt(0, "a"), revokeAt(5, "a", 1), silent(eraseAt(10)), historyAt(20, "a", "revoked"), historyAt(30)}, false},
		{"erased while it began", []history.Op{loginAt(10, "a"), eraseAt(10), validAt(20, "a")}, false},
		{"it began after all was erased, and is forgotten", []history.Op{eraseAt(0), loginAt(10, "a"), revokeAt(20, "a", 1), historyAt(30)}, true},
		{"a whole login", []history.Op{loginOf(0, "a", "x"), loginOf(5, "b", "x"), wholeAt(20, "a", "x", 2), invalidAt(30, "b", reasonEnded)}, false},
		{"a whole login, and another service", []history.Op{loginOf(0, "a", "x"), loginOf(5, "b", "x"), wholeAt(20, "a", "x", 1), validAt(30, "b")}, true},
		{"a whole login, and another one", []history.Op{loginOf(0, "a", "x"), loginOf(5, "b", "y"), wholeAt(20, "a", "x", 1), validAt(30, "b")}, false},
		{"a whole login that is lost with another", []history.Op{loginOf(0, "a", "x"), loginOf(5, "b", "y"), wholeAt(20, "a", "x", 1), readSession(30, "b", false, "")}, true},
		{"a whole login that was over", []history.Op{loginOf(0, "a", "x"), loginOf(5, "b", "x"), logout(10, "a", false, 1), wholeAt(20, "a", "x", 0), validAt(30, "b")}, false},
		{"those of a login", []history.Op{loginOf(0, "a", "x"), loginOf(5, "b", "y"), ofLogin(20, "x"), validAt(30, "b"), invalidAt(30, "a", reasonEnded)}, false},
		{"those of a login, and one counts", []history.Op{loginOf(0, "a", "x"), ofLogin(20, "x"), validAt(30, "a")}, true},
		{"the one that is spared", []history.Op{loginAt(0, "a"), loginAt(2, "b"), revokeUser(10, "a"), invalidAt(20, "a", "unknown"), revokeAt(30, "a", 1)}, true},
		{"two devices of two", []history.Op{oneOfTwoDevices(0, "a", "x"), oneOfTwoDevices(5, "b", "y"), devicesAt(10, "x", "y", "y")}, false},
		{"three devices of two", []history.Op{oneOfTwoDevices(0, "a", "x"), oneOfTwoDevices(5, "b", "y"), devicesAt(10, "x", "y", "z")}, true},
		{"three sessions of two", []history.Op{oneOfTwoAt(0, "a"), list(10, "u", "v", "w")}, true},
		{"a session and its end", []history.Op{loginAt(0, "a"), validAt(10, "a"), revokeAt(20, "a", 1), invalidAt(30, "a", reasonEnded)}, false},
		{"a session counts after its end", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), validAt(30, "a")}, true},
		{"it counts while it is ended", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), validAt(20, "a")}, false},
		{"it is ended, maybe", []history.Op{loginAt(0, "a"), silent(revokeAt(20, "a", 1)), validAt(30, "a"), invalidAt(40, "a", reasonEnded)}, false},
		{"it was seen to be ended, and counts", []history.Op{loginAt(0, "a"), silent(revokeAt(20, "a", 1)), invalidAt(40, "a", reasonEnded), validAt(50, "a")}, true},
		{"it was ended for two others", []history.Op{loginAt(0, "a"), logout(20, "a", false, 1), validAt(30, "a")}, true},
		{"everywhere", []history.Op{loginAt(0, "a"), loginAt(5, "b"), logout(20, "a", true, 2), validAt(30, "b")}, true},
		{"everywhere, of one that was over", []history.Op{loginAt(0, "a"), loginAt(5, "b"), logout(10, "a", false, 1), logout(20, "a", true, 0), validAt(30, "b")}, false},
		{"all of a user", []history.Op{loginAt(0, "a"), revokeUser(20, ""), validAt(30, "a")}, true},
		{"all but one", []history.Op{loginAt(0, "a"), revokeUser(20, "a"), validAt(30, "a")}, false},
		{"all of a user, and one that is new", []history.Op{loginAt(20, "a"), revokeUser(20, ""), validAt(30, "a")}, false},
		{"it is listed after its end", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), list(30, "a")}, true},
		{"it is refreshed after its end", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), refreshAt(30, "a", "r", "s", "")}, true},
		{"an SDK remembers it for as long as allowed", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), rememberedAt(70, "a", 50*time.Millisecond)}, false},
		{"an SDK remembers it for longer", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), rememberedAt(72, "a", 50*time.Millisecond)}, true},
		{"it does not count, and nothing ended it", []history.Op{loginAt(0, "a"), invalidAt(10, "a", "unknown"), revokeAt(20, "a", 1)}, true},
		{"a token that nobody gave out", []history.Op{loginAt(0, "a"), forged}, true},
		{"a refresh token twice, at about the same time", []history.Op{loginAt(0, "a"), refreshAt(10, "a", "r", "s", ""), refreshAt(12, "a", "r", "t", ""), refreshAt(20, "a", "s", "u", "")}, false},
		{"a refresh token of long ago", []history.Op{loginAt(0, "a"), refreshAt(10, "a", "r", "s", ""), refreshAt(20, "a", "s", "u", ""), refreshAt(30, "a", "r", "t", "")}, true},
		{"a refresh token of long ago that ends the session", []history.Op{loginAt(0, "a"), refreshAt(10, "a", "r", "s", ""), refreshAt(20, "a", "s", "u", ""), refreshAt(30, "a", "r", "", reasonReused)}, false},
		{"a session goes on after that", []history.Op{loginAt(0, "a"), refreshAt(30, "a", "r", "", reasonReused), validAt(40, "a")}, true},
		{"two of two", []history.Op{oneOfTwoAt(0, "a"), oneOfTwoAt(2, "b"), oneOfTwoAt(10, "c"), validAt(9, "a"), validAt(20, "b"), validAt(20, "c")}, false},
		{"three of two", []history.Op{oneOfTwoAt(0, "a"), oneOfTwoAt(2, "b"), oneOfTwoAt(10, "c"), validAt(20, "a"), validAt(20, "b"), validAt(20, "c")}, true},
		{"attributes from the version that is there", []history.Op{setAt(0, "a", nil, 1, "x"), setAt(10, "a", new(uint32(1)), 2, "y"), readAt(20, 2, "y")}, false},
		{"attributes that overwrite others", []history.Op{setAt(0, "a", new(uint32(1)), 2, "x"), setAt(10, "a", new(uint32(1)), 2, "y")}, true},
		{"attributes from another version", []history.Op{setAt(0, "a", new(uint32(1)), 3, "x")}, true},
		{"attributes that nobody set", []history.Op{setAt(0, "a", nil, 1, "x"), readAt(20, 1, "y")}, true},
		{"saved, found and dropped", []history.Op{savedAt(0, KindSave, false), savedAt(10, KindFind, true), savedAt(20, KindDrop, true), savedAt(30, KindFind, false)}, false},
		{"found after its end", []history.Op{savedAt(0, KindSave, false), savedAt(20, KindDrop, true), savedAt(30, KindFind, true)}, true},
		{"saved after its end", []history.Op{savedAt(0, KindSave, false), savedAt(20, KindDrop, true), savedAt(30, KindSave, false)}, true},
		{"saved after nothing was dropped", []history.Op{savedAt(20, KindDrop, false), savedAt(30, KindSave, false)}, false},
		{"saved and not found", []history.Op{savedAt(0, KindSave, false), savedAt(10, KindFind, false), savedAt(20, KindDrop, true)}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := judgeSessions(test.ops)
			if (len(j.Violations) > 0) != test.broken {
				t.Errorf("broken is %v, want %v: %v", !test.broken, test.broken, j.Violations)
			}
			for _, v := range j.Violations {
				if v.Kind != BrokenSession {
					t.Errorf("a violation of kind %s", v.Kind)
				}
			}
		})
	}
}

// What is listed and counted in the end follows from what callers were told.
func TestSumsOfSessions(t *testing.T) {
	ops := []history.Op{loginAt(0, "a"), loginAt(2, "b"), revokeAt(20, "b", 1), silent(loginAt(30, ""))}
	for _, test := range []struct {
		name                   string
		listed                 []string
		active, created, ended int
		broken                 bool
	}{
		{"all is well", []string{"a"}, 1, 2, 1, false},
		{"a login of unknown outcome was executed", []string{"a", "c"}, 2, 3, 1, false},
		{"one is listed that was ended", []string{"a", "b"}, 2, 2, 0, true},
		{"one is missing", nil, 0, 2, 2, true},
		{"one too many was made", []string{"a"}, 3, 4, 1, true},
		{"the counts do not fit", []string{"a"}, 2, 2, 1, true},
		{"more are listed than counted", []string{"a", "c"}, 1, 2, 1, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			listed := make(map[string]bool)
			for _, id := range test.listed {
				listed[id] = true
			}
			j := fatesOf(ops).sums(listed, test.active, test.created, test.ended)
			j.Add(judgeCreated(ops, test.created))
			if (len(j.Violations) > 0) != test.broken {
				t.Errorf("broken is %v, want %v: %v", !test.broken, test.broken, j.Violations)
			}
		})
	}
}

// One session is absent, then lives, then has ended: porcupine trusts nothing else.
func TestTheSequenceOfASession(t *testing.T) {
	for _, test := range []struct {
		name string
		ops  []history.Op
		ok   bool
	}{
		{"a life", []history.Op{loginAt(0, "a"), validAt(10, "a"), revokeAt(20, "a", 1), invalidAt(30, "a", reasonEnded), revokeAt(40, "a", 0)}, true},
		{"it ends while it is looked at", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), validAt(20, "a")}, true},
		{"it is read", []history.Op{loginAt(0, "a"), readSession(10, "a", true, ""), revokeAt(20, "a", 1), readSession(30, "a", true, "revoked"), readSession(40, "a", false, "")}, true},
		{"it is read after its end", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), readSession(30, "a", true, "")}, false},
		{"it comes back", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), validAt(30, "a")}, false},
		{"it ends twice", []history.Op{loginAt(0, "a"), revokeAt(20, "a", 1), revokeAt(30, "a", 1)}, false},
		{"it is not there", []history.Op{loginAt(0, "a"), invalidAt(10, "a", "unknown"), validAt(20, "a")}, false},
		{"it ends, maybe", []history.Op{loginAt(0, "a"), silent(revokeAt(20, "a", 1)), validAt(30, "a"), invalidAt(40, "a", reasonEnded)}, true},
		{"it ends, maybe, and comes back", []history.Op{loginAt(0, "a"), silent(revokeAt(20, "a", 1)), invalidAt(40, "a", reasonEnded), validAt(50, "a")}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var list []porcupine.Operation
			var all []*history.Op
			for i := range test.ops {
				op := &test.ops[i]
				all = append(all, op)
				list = append(list, porcupine.Operation{ClientId: i, Input: op, Call: int64(op.Call), Return: int64(op.Return)})
				if key, ok := sessionSequences().Key(op); !ok || key != "a" {
					t.Errorf("operation %d is of part %q", i, key)
				}
			}
			model, ok := sessionSequences().Model("a", all)
			if !ok || porcupine.CheckOperations(model, list) != test.ok {
				t.Errorf("understood %v; want %v", ok, test.ok)
			}
		})
	}
}
