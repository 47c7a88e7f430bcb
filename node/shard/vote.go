package shard

import "github.com/hashicorp/raft"

// Transport is what carries the messages of a group's Raft instance.
type Transport interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// votes asks for votes in a way that replicas grant them to a voter that they do not know of yet. hashicorp/raft refuses
// that, and it can leave a group without a leader although most voters live: when a leader is lost that made a third
// replica a voter, and only that one has the entry, then it cannot be elected, because the second replica takes it for a
// learner, nor can the second one, because its log is behind. What makes elections safe is the comparison of the logs, and
// that a candidate counts votes by its own configuration; Raft itself has no such refusal. A replica that was removed and
// does not know that disturbs nobody: its log is older than that of most voters, so they refuse even the pre-vote.
type votes struct {
	Transport
	// voters are those of the candidate's configuration.
	voters func() []string
}

// RequestVote leaves out the candidate's id, without which the receiver skips the question whether that is a voter. All
// else goes by the address.
func (v votes) RequestVote(id raft.ServerID, addr raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	unnamed := *q
	unnamed.ID = nil
	return v.Transport.RequestVote(id, addr, &unnamed, a)
}

// RequestPreVote asks again in the name of the other voters, one of which the receiver knows, if it has refused the candidate:
// here the id cannot be left out. A pre-vote changes nothing at the receiver, and its other reasons to refuse go by the
// address and the log, so that no name gets what the candidate should not.
func (v votes) RequestPreVote(id raft.ServerID, addr raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	err := v.Transport.RequestPreVote(id, addr, q, a)
	for _, voter := range v.voters() {
		if err != nil || a.Granted || a.Term > q.Term {
			break
		}
		if voter == string(q.ID) {
			continue
		}
		renamed := *q
		renamed.ID = []byte(voter)
		err = v.Transport.RequestPreVote(id, addr, &renamed, a)
	}
	return err
}
