package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"github.com/spf13/cobra"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/node"
)

func newDebug(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use: "debug", Short: "What a node that has stopped left on its disk: log",
		Example: "  holdfast debug log --data /var/lib/holdfast --shard 1",
	}
	cmd.AddCommand(newDebugLog(c))
	return cmd
}

func newDebugLog(c *cli) *cobra.Command {
	var data string
	var shard uint32
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Print the Raft log of a shard of a stopped node",
		Long: `log prints the Raft log of one shard, and how far the shard's state is, from the data directory of a node that does
not run. Nothing on disk changes. Entries after the applied one may be committed or not.

With -o json, each line is an object: first the shard, the applied position (index, term, shard time in milliseconds) and
the bounds of the log; then an entry a line: index, term, type (command, configuration, noop, barrier) and data in base64.`,
		Example: `  holdfast debug log --data /var/lib/holdfast --shard 1
  holdfast debug log --data /var/lib/holdfast --shard 0 -o json > catalog.log     the catalog`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if c.format == "yaml" {
				return usageErrorf("-o yaml: a log is printed as a table or as json")
			}
			log, err := node.OpenStoredLog(data, shard)
			if err != nil {
				if strings.Contains(err.Error(), "resource temporarily unavailable") || strings.Contains(err.Error(), "lock held") {
					return fmt.Errorf("the data directory is in use: stop the node first: %w", err)
				}
				return err
			}
			if c.format == "json" {
				err = c.logLines(log)
			} else {
				err = c.logTable(log)
			}
			return errors.Join(err, log.Close())
		},
	}
	cmd.Flags().StringVar(&data, "data", "./holdfast-data", "data directory of the node")
	cmd.Flags().Uint32Var(&shard, "shard", 1, "shard; 0 is the catalog")
	return cmd
}

// logHeader is the first line of a log, logEntry each other one.
type logHeader struct {
	Shard   uint32 `json:"shard"`
	Applied struct {
		Index uint64 `json:"index"`
		Term  uint64 `json:"term"`
		Time  int64  `json:"time_ms"`
	} `json:"applied"`
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

type logEntry struct {
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	Type  string `json:"type"`
	Data  []byte `json:"data,omitempty"`
}

var logTypes = map[raft.LogType]string{
	raft.LogCommand: "command", raft.LogConfiguration: "configuration", raft.LogNoop: "noop", raft.LogBarrier: "barrier",
}

func (c *cli) logLines(log *node.StoredLog) error {
	out := json.NewEncoder(c.stdout)
	h := logHeader{Shard: log.Group, First: log.First, Last: log.Last}
	h.Applied.Index, h.Applied.Term, h.Applied.Time = log.Applied.Index, log.Applied.Term, int64(log.Applied.Time)
	if err := out.Encode(h); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return log.Entries(func(l *raft.Log) error {
		if err := out.Encode(logEntry{Index: l.Index, Term: l.Term, Type: logTypes[l.Type], Data: l.Data}); err != nil {
			return fmt.Errorf("write the answer: %w", err)
		}
		return nil
	})
}

func (c *cli) logTable(log *node.StoredLog) error {
	t := &table{header: []string{"index", "term", "type", "time", "frames", "calls", "bytes"}}
	err := log.Entries(func(l *raft.Log) error {
		kind, at, frames, calls := logTypes[l.Type], "", "", ""
		if l.Type == raft.LogCommand && len(l.Data) > 0 {
			e, err := fsm.DecodeEntry(l.Data)
			if err != nil {
				return fmt.Errorf("entry %d: %w", l.Index, err)
			}
			n := 0
			for i := range e.Frames {
				n += len(e.Frames[i].Calls)
			}
			kind, at = entryNames[e.Kind], time.UnixMilli(int64(e.Time)).UTC().Format(time.RFC3339Nano)
			frames, calls = strconv.Itoa(len(e.Frames)), strconv.Itoa(n)
		}
		t.add(strconv.FormatUint(l.Index, 10), strconv.FormatUint(l.Term, 10), kind, at, frames, calls, strconv.Itoa(len(l.Data)))
		return nil
	})
	if err != nil {
		return err
	}
	t.add()
	t.add(fmt.Sprintf("shard %d, state at entry %d of term %d, log from %d to %d", log.Group, log.Applied.Index, log.Applied.Term, log.First, log.Last))
	return c.printer().table(t)
}

var entryNames = map[fsm.EntryKind]string{
	fsm.Commands: "commands", fsm.TermStart: "term start", fsm.Sweep: "sweep", fsm.Nudge: "nudge",
	fsm.Checksum: "checksum",
}
