package rpc

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func TestLargeBodiesAreBoundedTogether(t *testing.T) {
	const size = 4_000_000
	all := &bodies{}
	const fit = maxBodies / (size - smallBody)
	var nested http.Handler
	at := 0
	// Each reads its body and then lets the next one in, so that all are under way together.
	nested = all.bounded(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if at++; at > fit {
			w := httptest.NewRecorder()
			writeProblem(r.Context(), nil, nil, w, r, err)
			if !errors.Is(err, errBodies) || w.Code != http.StatusTooManyRequests || !strings.Contains(w.Body.String(), `"OVERLOADED"`) ||
				w.Header().Get("Retry-After") == "" {
				t.Errorf("number %d: %v, answered %d %s", at, err, w.Code, w.Body)
			}
			return
		}
		if n != size || err != nil {
			t.Errorf("number %d: %d bytes, %v", at, n, err)
		}
		// Small ones go on.
		all.bounded(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err != nil {
				t.Errorf("a small body: %v", err)
			}
		})).ServeHTTP(nil, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(strings.Repeat("x", smallBody))))
		nested.ServeHTTP(nil, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(strings.Repeat("x", size))))
	}))
	nested.ServeHTTP(nil, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(strings.Repeat("x", size))))
	if at != fit+1 || all.used.Load() != 0 {
		t.Errorf("%d bodies, %d bytes are held after the last", at, all.used.Load())
	}
}

func TestABodyIsOneJSONValue(t *testing.T) {
	for text, valid := range map[string]bool{
		`{"client_id":"a"}`: true, "{} \n\t": true, `{} {}`: false, `{}}`: false, `{}]`: false, `{}x`: false, `{}"`: false, `{},`: false,
	} {
		err := jsonBody{&runtime.JSONPb{}}.NewDecoder(strings.NewReader(text)).Decode(&pb.CheckRequest{})
		if (err == nil) != valid || errors.Is(err, io.EOF) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
