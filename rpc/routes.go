package rpc

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// route is what a call of REST takes beside its body and the fields in its path.
type route struct {
	query  []string // names of parameters
	status bool     // http_status, for a denial as status 429
}

// routeTable finds routes by method and path, as the gateway writes its patterns.
type routeTable map[string]route

const queryStatus = "http_status"

// routes reads the table from the services' own descriptions.
func routes() routeTable {
	all := make(routeTable)
	ours := (&pb.CheckRequest{}).ProtoReflect().Descriptor().ParentFile().Package()
	protoregistry.GlobalFiles.RangeFilesByPackage(ours, func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			for j := range file.Services().Get(i).Methods().Len() {
				all.add(file.Services().Get(i).Methods().Get(j))
			}
		}
		return true
	})
	return all
}

func (t routeTable) add(m protoreflect.MethodDescriptor) {
	rule, _ := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
	var method string
	switch rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		method = http.MethodGet
	case *annotations.HttpRule_Delete:
		method = http.MethodDelete
	case *annotations.HttpRule_Post:
		method = http.MethodPost
	case *annotations.HttpRule_Put:
		method = http.MethodPut
	case *annotations.HttpRule_Patch:
		method = http.MethodPatch
	default:
		return // over gRPC only
	}
	path := cmp.Or(rule.GetGet(), rule.GetDelete(), rule.GetPost(), rule.GetPut(), rule.GetPatch())
	r := route{status: m.Output() == (&pb.CheckResponse{}).ProtoReflect().Descriptor()}
	for i := range m.Input().Fields().Len() {
		f := m.Input().Fields().Get(i)
		if rule.Body == "" && !strings.Contains(path, "{"+string(f.Name())+"}") {
			r.query = append(r.query, string(f.Name()), f.JSONName())
		}
	}
	t[method+" "+strings.ReplaceAll(path, "}", "=*}")] = r
}

// slashMark stands for a / in an id, which the gateway would take for one of the path. No text has this byte.
const slashMark = "\xfe"

var slashEscapes = strings.NewReplacer("%2F", "%FE", "%2f", "%FE")

// slashes makes an escaped / in a path a part of the id where it is.
func slashes(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !utf8.ValidString(r.URL.Path) {
			writeProblem(r.Context(), nil, nil, w, r, statusOf(invalidf("the path of the URL is not UTF-8")))
			return
		}
		marked := *r
		at := *r.URL
		at.RawPath = slashEscapes.Replace(at.RawPath)
		marked.URL = &at
		next.ServeHTTP(w, &marked)
	})
}

type httpStatusKey struct{}

// exact refuses what a request says and nothing would listen to: a parameter of its query that the call does not have, a
// body that contradicts the path, a key that goes no further. Who misspells the policy to ask about must not be told about all of them.
func (t routeTable) exact(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, path map[string]string) {
		for name, value := range path {
			path[name] = strings.ReplaceAll(value, slashMark, "/")
		}
		if b, ok := r.Body.(*body); ok {
			b.path = path
		}
		if err := checkKey(r.Header.Get(headerIdempotency)); err != nil {
			writeProblem(r.Context(), nil, nil, w, r, statusOf(err))
			return
		}
		if r.URL.RawQuery != "" {
			pattern, _ := runtime.HTTPPattern(r.Context())
			denied, err := t[r.Method+" "+pattern.String()].check(r.URL.RawQuery)
			if err != nil {
				writeProblem(r.Context(), nil, nil, w, r, statusOf(err))
				return
			}
			r = r.WithContext(context.WithValue(r.Context(), httpStatusKey{}, denied))
		}
		next(w, r, path)
	}
}

// check tells whether the caller wants a denial as status 429.
func (r route) check(text string) (denied bool, err error) {
	query, err := url.ParseQuery(text)
	if err != nil {
		return false, invalidf("the query of the URL: %v", err)
	}
	for name, values := range query {
		switch {
		case r.status && name == queryStatus:
			if denied, err = strconv.ParseBool(values[0]); err != nil {
				return false, invalidf("%s %q: use true or false", queryStatus, values[0])
			}
		case !slices.Contains(r.query, name):
			return false, invalidf("unknown query parameter %q", name)
		}
	}
	return denied, nil
}
