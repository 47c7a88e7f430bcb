package rpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/holdfastdb/holdfast/fsm"
)

const (
	// smallBody is what a body may take without being counted: more than what checks need.
	smallBody = 64 << 10
	// maxBodies bounds the rest of all bodies that are being read or worked on.
	maxBodies = 64 << 20
)

// bodies bounds the memory of large HTTP bodies: a body counts with what was read of it until it is answered.
type bodies struct{ used atomic.Int64 }

var errBodies = fmt.Errorf("%w: too many large requests at a time", fsm.ErrOverloaded)

func (b *bodies) bounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody {
			h.ServeHTTP(w, r)
			return
		}
		counted := &body{ReadCloser: r.Body, all: b}
		defer func() { b.used.Add(-counted.large) }()
		r.Body = counted
		h.ServeHTTP(w, r)
	})
}

// body is one request's.
type body struct {
	io.ReadCloser
	all     *bodies
	size    int64
	large   int64 // what it has of all
	refused bool
	path    map[string]string // the fields that the path gave
}

// agrees refuses a message of the body that contradicts the path: one of the two is not meant.
func (b *body) agrees(m protoreflect.Message) error {
	for name, value := range b.path {
		f := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		if f != nil && m.Has(f) && m.Get(f).String() != value {
			return fmt.Errorf("%s is %q in the path and %q in the body: leave it out there", name, value, m.Get(f).String())
		}
	}
	return nil
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.size += int64(n)
	if more := b.size - smallBody - b.large; more > 0 {
		b.large += more
		if b.all.used.Add(more) > maxBodies {
			b.refused = true
			return 0, errBodies
		}
	}
	return n, err
}

// jsonBody reads bodies of exactly one JSON value, that say nothing else than the path.
type jsonBody struct{ *runtime.JSONPb }

// NewDecoder implements runtime.Marshaler.
func (j jsonBody) NewDecoder(r io.Reader) runtime.Decoder {
	text := json.NewDecoder(r)
	d := runtime.DecoderWrapper{Decoder: text, UnmarshalOptions: j.UnmarshalOptions}
	return runtime.DecoderFunc(func(m any) error {
		if err := d.Decode(m); err != nil {
			return err
		}
		switch _, err := text.Token(); {
		case errors.Is(err, io.EOF):
			whole, counted := r.(*body)
			message, is := m.(proto.Message)
			if !counted || !is {
				return nil
			}
			return whole.agrees(message.ProtoReflect())
		case err != nil && !errors.As(err, new(*json.SyntaxError)):
			return err
		}
		return errors.New("something follows the JSON value of the body")
	})
}
