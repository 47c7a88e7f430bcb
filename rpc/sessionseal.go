package rpc

import (
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm/session"
	"github.com/holdfastdb/holdfast/rpc/codec"
)

// The parts of a session that are sealed. Part of what is sealed: never change.
const (
	profilePart    = "profile"
	attributesPart = "attributes"
	savedPart      = "saved"
)

// seal encrypts a message for a user's sessions.
func (s *sessions) seal(m proto.Message, user session.UserKey, part string) ([]byte, error) {
	text, err := codec.Marshal(m)
	if err != nil {
		return nil, invalidf("%s: %v", part, err)
	}
	return s.sealer.Seal(text, append(user[:], part...))
}

// open is the inverse of seal, but for the message's encoding. What is returned may point into sealed.
func (s *sessions) open(sealed []byte, user session.UserKey, part string) ([]byte, error) {
	if len(sealed) == 0 {
		return nil, nil
	}
	return s.sealer.Open(sealed, append(user[:], part...))
}

// openAs also decodes the message.
func (s *sessions) openAs(sealed []byte, user session.UserKey, part string, m proto.Message) error {
	text, err := s.open(sealed, user, part)
	if err != nil {
		return err
	}
	return codec.Unmarshal(text, m)
}
