// Package plant has bugs that are planted on purpose, to see that the tests of clusters find them: checks that never failed
// prove nothing. Each bug is one line where it would be made. Without the build tag "planted" there are none: On is a
// constant, and what depends on it is not even compiled.
package plant

// Bug is one of them.
type Bug uint8

// The bugs. None is the absence of all.
const (
	None            Bug = iota
	SkipDedup           // a frame that was executed before is executed again
	ApplyTwice          // the stored position is older than the state: a restart applies entries again
	ReadUnconfirmed     // a leader answers queries without asking whether it still leads
	FollowerReads       // so does a replica that knows that it does not lead
	TruncateEarly       // the log is cut before the state that it made is on disk
	AckBeforeQuorum     // a follower says that it has entries before it has them
	LocalClock          // a state machine asks the clock
	LoseExpiry          // what expires is not listed as such
	FreeLease           // a lease is granted and not deducted
	RefundTwice         // what a reservation did not use is given back twice
	SnapshotShort       // a state that is sent lacks the last entry that it claims to have
	VoteUnsynced        // a vote is sent before it is on disk
	VoteApart           // a vote's term and its candidate are two writes (hashicorp/raft #661)
	LogUnsynced         // an entry is acknowledged before it is on disk
	CountUnsynced       // a leader counts itself for the majority before the entry is on its disk
	OverSpend           // a holder does not count what it spends of a lease
	SpendLate           // a lease is spent after its end
	AllowShort          // a limit that has nothing left allows all the same
	FailOpen            // now and then a check is answered without its limits
	WrongClock          // a leader stamps entries with times that are seconds ahead
	MissChange          // a node is not told of every change of the catalog
	ForgetPolicy        // a change of a policy is acknowledged and not made
	RefuseDone          // now and then a frame that was executed is said to have come too late
	KeepRevoked         // a session that is ended is acknowledged as such and stays
	ForgiveReuse        // a refresh token that was exchanged long ago is taken again
	NoTombstone         // a saved session that is dropped can be saved again
	OneTooMany          // a user may have one session more than allowed
	MissEnds            // who follows sessions is not told of their ends
	KeepHistory         // of who is erased a history stays
	LoginApart          // a logout of a whole login ends one session only
	DeviceMore          // a user may have one device more than allowed
	SpareNone           // who ends all sessions but one ends that too
	WrongReason         // an evicted session is remembered as revoked
	MissBegins          // who follows sessions is not told of each that begins
)
