package main

import (
	"fmt"
	"sort"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// The kinds of things that a contract is made of. "service" and so on are also
// the first word of a fact's name.
const (
	kindFile    = "file"
	kindService = "service"
	kindMethod  = "method"
	kindMessage = "message"
	kindField   = "field"
	kindOneof   = "oneof"
	kindEnum    = "enum"
	kindValue   = "value"
)

// facts maps the full name of each thing ("field runtime.v1.Mount.image") to
// all that the wire or the generated code depends on, as text.
// Comments, and the order in which things are written, are no facts.
type facts map[string]string

// compare lists what differs between two contracts, sorted by name.
func compare(ours, theirs *descriptorpb.FileDescriptorProto) []string {
	a, b := flatten(ours), flatten(theirs)
	var out []string
	for name, want := range b {
		got, ok := a[name]
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("%s: missing here, cri-api has {%s}", name, want))
		case got != want:
			out = append(out, fmt.Sprintf("%s: {%s} here, {%s} in cri-api", name, got, want))
		}
	}
	for name, got := range a {
		if _, ok := b[name]; !ok {
			out = append(out, fmt.Sprintf("%s: only here {%s}", name, got))
		}
	}
	sort.Strings(out)
	return out
}

// census counts the facts of a contract by kind.
func census(file *descriptorpb.FileDescriptorProto) string {
	n := map[string]int{}
	for name := range flatten(file) {
		kind, _, _ := strings.Cut(name, " ")
		n[kind]++
	}
	return fmt.Sprintf("%d services, %d methods, %d messages, %d fields, %d enums, %d values",
		n[kindService], n[kindMethod], n[kindMessage], n[kindField], n[kindEnum], n[kindValue])
}

func flatten(file *descriptorpb.FileDescriptorProto) facts {
	f := facts{}
	f.add(kindFile, file.GetPackage(), "syntax", file.GetSyntax(), "dependencies", file.GetDependency(),
		"extensions", len(file.GetExtension()), "options", options(file.GetOptions()))
	for _, s := range file.GetService() {
		name := file.GetPackage() + "." + s.GetName()
		f.add(kindService, name, "options", options(s.GetOptions()))
		for _, m := range s.GetMethod() {
			f.add(kindMethod, name+"."+m.GetName(),
				"request", m.GetInputType(), "client streams", m.GetClientStreaming(),
				"response", m.GetOutputType(), "server streams", m.GetServerStreaming(),
				"options", options(m.GetOptions()))
		}
	}
	for _, m := range file.GetMessageType() {
		f.message(file.GetPackage(), m)
	}
	for _, e := range file.GetEnumType() {
		f.enum(file.GetPackage(), e)
	}
	return f
}

func (f facts) message(scope string, m *descriptorpb.DescriptorProto) {
	name := scope + "." + m.GetName()
	f.add(kindMessage, name, "reserved", reserved(m.GetReservedRange(), m.GetReservedName()),
		"extension ranges", len(m.GetExtensionRange()), "extensions", len(m.GetExtension()),
		"options", options(m.GetOptions()))

	// The compiler turns a map into a repeated field of a hidden entry message.
	entries := map[string]*descriptorpb.DescriptorProto{}
	for _, n := range m.GetNestedType() {
		if n.GetOptions().GetMapEntry() {
			entries["."+name+"."+n.GetName()] = n
		} else {
			f.message(name, n)
		}
	}
	for _, o := range m.GetOneofDecl() {
		f.add(kindOneof, name+"."+o.GetName(), "options", options(o.GetOptions()))
	}
	for _, field := range m.GetField() {
		oneof := ""
		if field.OneofIndex != nil {
			oneof = m.GetOneofDecl()[field.GetOneofIndex()].GetName()
		}
		label := strings.ToLower(strings.TrimPrefix(field.GetLabel().String(), "LABEL_"))
		kind := fieldType(field)
		if e, ok := entries[field.GetTypeName()]; ok && len(e.GetField()) == 2 {
			label, kind = "map", fieldType(e.GetField()[0])+" to "+fieldType(e.GetField()[1])
		}
		f.add(kindField, name+"."+field.GetName(), "number", field.GetNumber(), "label", label,
			"type", kind, "oneof", oneof, "explicit presence", field.GetProto3Optional(),
			"json", field.GetJsonName(), "default", field.GetDefaultValue(),
			"options", options(field.GetOptions()))
	}
	for _, e := range m.GetEnumType() {
		f.enum(name, e)
	}
}

func (f facts) enum(scope string, e *descriptorpb.EnumDescriptorProto) {
	name := scope + "." + e.GetName()
	f.add(kindEnum, name, "reserved", reserved(e.GetReservedRange(), e.GetReservedName()),
		"options", options(e.GetOptions()))
	for _, v := range e.GetValue() {
		f.add(kindValue, name+"."+v.GetName(), "number", v.GetNumber(), "options", options(v.GetOptions()))
	}
}

// add records one thing; pairs alternate a property's name and its value, and
// a property that holds nothing is left out of the text.
func (f facts) add(kind, name string, pairs ...any) {
	var text []string
	for i := 0; i+1 < len(pairs); i += 2 {
		value := fmt.Sprint(pairs[i+1])
		numbered := pairs[i] == "number"
		if !numbered && (value == "" || value == "0" || value == "false" || value == "[]") {
			continue
		}
		text = append(text, fmt.Sprintf("%s %s", pairs[i], value))
	}
	f[kind+" "+name] = strings.Join(text, ", ")
}

func fieldType(field *descriptorpb.FieldDescriptorProto) string {
	kind := strings.ToLower(strings.TrimPrefix(field.GetType().String(), "TYPE_"))
	if field.GetTypeName() != "" {
		kind += " " + strings.TrimPrefix(field.GetTypeName(), ".")
	}
	return kind
}

// reserved renders the numbers and names that a message or enum withholds.
func reserved[R interface {
	GetStart() int32
	GetEnd() int32
}](ranges []R, names []string) []string {
	out := append([]string(nil), names...)
	for _, r := range ranges {
		out = append(out, fmt.Sprintf("%d to %d", r.GetStart(), r.GetEnd()))
	}
	sort.Strings(out)
	return out
}

// options renders every option that is set (deprecated, debug_redact, packed
// and so on); an empty message counts as none.
func options(m proto.Message) []string {
	var out []string
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		out = append(out, fmt.Sprintf("%s=%v", fd.Name(), v.Interface()))
		return true
	})
	if unknown := m.ProtoReflect().GetUnknown(); len(unknown) > 0 {
		out = append(out, fmt.Sprintf("unknown=%x", unknown))
	}
	sort.Strings(out)
	return out
}
