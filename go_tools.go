//go:build tools

// Package holdfast pins the code generators that make proto builds from this module.
package holdfast

import (
	_ "github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway"
	_ "google.golang.org/protobuf/cmd/protoc-gen-go"
)
