package main

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

type file = descriptorpb.FileDescriptorProto

func TestTheContractEqualsItself(t *testing.T) {
	if d := compare(upstream(), upstream()); len(d) > 0 {
		t.Fatalf("differences between equal contracts:\n%s", strings.Join(d, "\n"))
	}
}

func TestOrderIsNoDifference(t *testing.T) {
	changed := upstream()
	changed.MessageType[0], changed.MessageType[1] = changed.MessageType[1], changed.MessageType[0]
	if d := compare(changed, upstream()); len(d) > 0 {
		t.Fatalf("order reported as a difference:\n%s", strings.Join(d, "\n"))
	}
}

// Each row damages a copy of the contract and names the lines, by their
// beginning, that must come out: these and no others.
func TestDamageIsReported(t *testing.T) {
	rows := []struct {
		name   string
		damage func(*file)
		want   []string
	}{
		{"renamed field", func(f *file) { field(t, f, "Mount", "host_path").Name = proto.String("host_dir") },
			[]string{"field runtime.v1.Mount.host_dir: only here", "field runtime.v1.Mount.host_path: missing here"}},
		{"changed number", func(f *file) { field(t, f, "Mount", "host_path").Number = proto.Int32(99) },
			[]string{"field runtime.v1.Mount.host_path: {number 99"}},
		{"changed type", func(f *file) {
			field(t, f, "Mount", "readonly").Type = descriptorpb.FieldDescriptorProto_TYPE_INT32.Enum()
		}, []string{"field runtime.v1.Mount.readonly: {number 3, label optional, type int32"}},
		{"other message type", func(f *file) {
			field(t, f, "ContainerStats", "cpu").TypeName = proto.String(".runtime.v1.IoUsage")
		}, []string{"field runtime.v1.ContainerStats.cpu: {"}},
		{"repeated made single", func(f *file) {
			field(t, f, "DNSConfig", "servers").Label = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()
		}, []string{"field runtime.v1.DNSConfig.servers: {number 1, label optional"}},
		{"explicit presence", func(f *file) {
			field(t, f, "Mount", "readonly").Proto3Optional = proto.Bool(true)
		}, []string{"field runtime.v1.Mount.readonly: {"}},
		{"moved into a oneof", func(f *file) {
			m := message(t, f, "Mount")
			m.OneofDecl = append(m.OneofDecl, &descriptorpb.OneofDescriptorProto{Name: proto.String("source")})
			field(t, f, "Mount", "host_path").OneofIndex = proto.Int32(0)
		}, []string{"field runtime.v1.Mount.host_path: {", "oneof runtime.v1.Mount.source: only here"}},
		{"map with other values", func(f *file) {
			entry := message(t, f, "PodSandboxConfig").NestedType[0]
			entry.Field[1].Type = descriptorpb.FieldDescriptorProto_TYPE_BYTES.Enum()
		}, []string{"field runtime.v1.PodSandboxConfig.labels: {number 6, label map, type string to bytes"}},
		{"deprecation lost", func(f *file) {
			field(t, f, "LinuxSandboxSecurityContext", "seccomp_profile_path").Options = nil
		}, []string{"field runtime.v1.LinuxSandboxSecurityContext.seccomp_profile_path: {"}},
		{"redaction lost", func(f *file) { field(t, f, "AuthConfig", "password").Options = nil },
			[]string{"field runtime.v1.AuthConfig.password: {"}},
		{"missing field", func(f *file) {
			m := message(t, f, "IDMapping")
			m.Field = m.Field[:2]
		}, []string{"field runtime.v1.IDMapping.length: missing here"}},
		{"missing method", func(f *file) {
			s := f.Service[1]
			s.Method = s.Method[:len(s.Method)-1]
		}, []string{"method runtime.v1.ImageService.ImageFsInfo: missing here"}},
		{"extra method", func(f *file) {
			extra := proto.Clone(f.Service[1].Method[0]).(*descriptorpb.MethodDescriptorProto)
			extra.Name = proto.String("MountImage")
			f.Service[1].Method = append(f.Service[1].Method, extra)
		}, []string{"method runtime.v1.ImageService.MountImage: only here"}},
		{"lost stream", func(f *file) { method(t, f, "GetContainerEvents").ServerStreaming = nil },
			[]string{"method runtime.v1.RuntimeService.GetContainerEvents: {"}},
		{"gained client stream", func(f *file) { method(t, f, "Version").ClientStreaming = proto.Bool(true) },
			[]string{"method runtime.v1.RuntimeService.Version: {"}},
		{"other response", func(f *file) {
			method(t, f, "Version").OutputType = proto.String(".runtime.v1.StatusResponse")
		}, []string{"method runtime.v1.RuntimeService.Version: {"}},
		{"missing service", func(f *file) {
			f.Service[1].Method = nil
			f.Service = f.Service[:1]
		}, []string{"service runtime.v1.ImageService: missing here",
			"method runtime.v1.ImageService.ImageFsInfo: missing here",
			"method runtime.v1.ImageService.ImageStatus: missing here",
			"method runtime.v1.ImageService.ListImages: missing here",
			"method runtime.v1.ImageService.PullImage: missing here",
			"method runtime.v1.ImageService.RemoveImage: missing here",
			"method runtime.v1.ImageService.StreamImages: missing here"}},
		{"extra enum value", func(f *file) {
			f.EnumType[0].Value = append(f.EnumType[0].Value,
				&descriptorpb.EnumValueDescriptorProto{Name: proto.String("QUIC"), Number: proto.Int32(3)})
		}, []string{"value runtime.v1.Protocol.QUIC: only here"}},
		{"renumbered value of a nested enum", func(f *file) {
			message(t, f, "SecurityProfile").EnumType[0].Value[1].Number = proto.Int32(7)
		}, []string{"value runtime.v1.SecurityProfile.ProfileType.Unconfined: {number 7}"}},
		{"extra nested message", func(f *file) {
			m := message(t, f, "Mount")
			m.NestedType = append(m.NestedType, &descriptorpb.DescriptorProto{Name: proto.String("Inner")})
		}, []string{"message runtime.v1.Mount.Inner: only here"}},
		{"reserved number", func(f *file) {
			m := message(t, f, "Mount")
			m.ReservedRange = append(m.ReservedRange,
				&descriptorpb.DescriptorProto_ReservedRange{Start: proto.Int32(50), End: proto.Int32(51)})
		}, []string{"message runtime.v1.Mount: {reserved [50 to 51]}"}},
		{"other file option", func(f *file) { f.Options.GoPackage = proto.String("elsewhere") },
			[]string{"file runtime.v1: {"}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			changed := upstream()
			row.damage(changed)
			got := compare(changed, upstream())
			if len(got) != len(row.want) {
				t.Fatalf("%d differences, expected %d:\n%s", len(got), len(row.want), strings.Join(got, "\n"))
			}
			for _, want := range row.want {
				if !anyBegins(got, want) {
					t.Errorf("no line begins with %q in:\n%s", want, strings.Join(got, "\n"))
				}
			}
		})
	}
}

func anyBegins(lines []string, prefix string) bool {
	for _, line := range lines {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return false
}

func message(t *testing.T, f *file, name string) *descriptorpb.DescriptorProto {
	t.Helper()
	for _, m := range f.MessageType {
		if m.GetName() == name {
			return m
		}
	}
	t.Fatalf("cri-api has no message %s", name)
	return nil
}

func field(t *testing.T, f *file, inMessage, name string) *descriptorpb.FieldDescriptorProto {
	t.Helper()
	for _, fd := range message(t, f, inMessage).Field {
		if fd.GetName() == name {
			return fd
		}
	}
	t.Fatalf("cri-api has no field %s.%s", inMessage, name)
	return nil
}

func method(t *testing.T, f *file, name string) *descriptorpb.MethodDescriptorProto {
	t.Helper()
	for _, m := range f.Service[0].Method {
		if m.GetName() == name {
			return m
		}
	}
	t.Fatalf("cri-api has no method %s", name)
	return nil
}
