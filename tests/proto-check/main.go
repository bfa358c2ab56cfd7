// Command proto-check compares a descriptor set of proto/api.proto with the
// descriptors that k8s.io/cri-api was generated from. It reads the file that
// its only argument names, prints one line per difference, and exits with 1
// if there is any.
package main

import (
	"fmt"
	"os"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: proto-check DESCRIPTOR-SET")
		os.Exit(2)
	}
	ours, err := load(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "proto-check:", err)
		os.Exit(2)
	}

	theirs := upstream()
	differences := compare(ours, theirs)
	for _, d := range differences {
		fmt.Println(d)
	}
	if len(differences) > 0 {
		fmt.Printf("%d differences\n", len(differences))
		os.Exit(1)
	}
	fmt.Printf("%s: identical\n", census(theirs))
}

// upstream is the contract as the cri-api module carries it.
func upstream() *descriptorpb.FileDescriptorProto {
	return protodesc.ToFileDescriptorProto(runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto)
}

// load reads a descriptor set and returns its single file, after a check that
// every type name in it resolves.
func load(path string) (*descriptorpb.FileDescriptorProto, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(raw, &set); err != nil {
		return nil, fmt.Errorf("%s is no descriptor set: %w", path, err)
	}
	if len(set.File) != 1 {
		return nil, fmt.Errorf("%s holds %d files, expected 1", path, len(set.File))
	}
	if _, err := protodesc.NewFile(set.File[0], nil); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return set.File[0], nil
}
