package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// printer writes a command's answer in the format that -o chose.
type printer struct {
	out    io.Writer
	format string // table, json or yaml
}

// table is the answer for people: a header and rows of cells.
type table struct {
	header []string
	rows   [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// message prints a protobuf message: as the table that it is given, or as data with the names of the REST interface.
func (p *printer) message(m proto.Message, t *table) error { return p.field(m, "", t) }

// field prints, as data, only the named field of a message.
func (p *printer) field(m proto.Message, name string, t *table) error {
	if p.format == "table" {
		return p.table(t)
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	if name == "" {
		return p.raw(b)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	return p.value(map[string]json.RawMessage{name: all[name]}, t)
}

// value prints any value that encodes as JSON.
func (p *printer) value(v any, t *table) error {
	if p.format == "table" {
		return p.table(t)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	return p.raw(b)
}

func (p *printer) raw(b []byte) error {
	var v any
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber() // as a float, 1000000 is 1e+06 in YAML
	if err := dec.Decode(&v); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	if p.format == "yaml" {
		enc := yaml.NewEncoder(p.out)
		enc.SetIndent(2)
		if err := enc.Encode(numbers(v)); err != nil {
			return fmt.Errorf("write the answer: %w", err)
		}
		return enc.Close()
	}
	enc := json.NewEncoder(p.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

// numbers makes numbers of what was read as json.Number, which YAML takes for text.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		if f, err := v.Float64(); err == nil {
			return f
		}
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = numbers(v[k])
		}
	}
	return v
}

func (p *printer) table(t *table) error {
	w := tabwriter.NewWriter(p.out, 0, 4, 2, ' ', 0)
	if len(t.header) > 0 {
		_, _ = fmt.Fprintln(w, strings.ToUpper(strings.Join(t.header, "\t")))
	}
	for _, row := range t.rows {
		_, _ = fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}
