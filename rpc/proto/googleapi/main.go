// Command googleapi writes the descriptors of google/api/annotations.proto and what it needs, taken from the Go
// module that is linked anyway, so that make proto needs no copy of those files.
package main

import (
	"log"
	"os"

	_ "google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	_ "google.golang.org/protobuf/types/known/timestamppb"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: googleapi OUTPUT")
	}
	var set descriptorpb.FileDescriptorSet
	for _, path := range []string{
		"google/protobuf/descriptor.proto", "google/protobuf/timestamp.proto",
		"google/api/http.proto", "google/api/annotations.proto",
	} {
		file, err := protoregistry.GlobalFiles.FindFileByPath(path)
		if err != nil {
			log.Fatalf("find %s: %v", path, err)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(file))
	}
	data, err := proto.Marshal(&set)
	if err != nil {
		log.Fatalf("encode descriptors: %v", err)
	}
	if err := os.WriteFile(os.Args[1], data, 0o600); err != nil {
		log.Fatal(err)
	}
}
