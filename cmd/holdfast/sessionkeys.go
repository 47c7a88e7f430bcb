package main

import (
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/holdfastdb/holdfast/rpc/seal/keyring"
)

func newSessionKeys(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "The keys that encrypt what sessions say of users: create, rotate, list",
		Long: `keys makes and changes files of keys, without a cluster. All nodes get the same file, with --session-keys, and read it
when they start. Keep a copy where the data is not: without its key, nobody can read what it encrypted.`,
		Example: `  holdfast session keys create keys.json
  holdfast session keys list keys.json`,
	}
	cmd.AddCommand(newSessionKeysCreate(c), newSessionKeysRotate(c), newSessionKeysList(c))
	return cmd
}

func newSessionKeysCreate(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "create FILE", Short: "Make a file with one new key", Example: "  holdfast session keys create keys.json", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			ring, err := keyring.New()
			if err == nil {
				err = ring.Create(args[0])
			}
			if err != nil {
				return keysError(err)
			}
			return c.printKeys(ring)
		},
	}
}

func newSessionKeysRotate(c *cli) *cobra.Command {
	var prepare bool
	cmd := &cobra.Command{
		Use:   "rotate FILE",
		Short: "Encrypt with a new key from now on; the old ones stay, for reading",
		Long: `rotate adds a key and makes it the one that encrypts. What the old keys encrypted stays readable with them.

A node cannot read what another one encrypts with a key that it does not have. To rotate while a cluster of several nodes
serves, do it in two steps: rotate --prepare adds the key for reading only; give the file to all nodes and restart them
one after another; then rotate, and the same again.`,
		Example: `  holdfast session keys rotate keys.json
  holdfast session keys rotate keys.json --prepare`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			ring, err := keyring.Read(args[0])
			if err != nil {
				return keysError(err)
			}
			next := ring.Rotate
			if prepare {
				next = ring.Prepare
			}
			if ring, err = next(); err == nil {
				err = ring.Replace(args[0])
			}
			if err != nil {
				return keysError(err)
			}
			return c.printKeys(ring)
		},
	}
	cmd.Flags().BoolVar(&prepare, "prepare", false, "only add the key: the next rotate makes it the one that encrypts")
	return cmd
}

func newSessionKeysList(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "list FILE", Short: "List the keys of a file; the keys themselves are not shown", Example: "  holdfast session keys list keys.json", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			ring, err := keyring.Read(args[0])
			if err != nil {
				return keysError(err)
			}
			return c.printKeys(ring)
		},
	}
}

// keysError makes wrong usage of what is wrong with the file that was named.
func keysError(err error) error {
	for _, one := range []error{fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, keyring.ErrExposed, keyring.ErrInvalid} {
		if errors.Is(err, one) {
			return usageErrorf("%w", err)
		}
	}
	return err
}

func (c *cli) printKeys(ring *keyring.Ring) error {
	type key struct {
		ID  uint32 `json:"id"`
		Use string `json:"use"`
	}
	list := []key{}
	t := &table{header: []string{"key", "use"}}
	for _, k := range ring.Keys() {
		use := "reads"
		switch {
		case k.Primary:
			use = "encrypts and reads"
		case !k.Enabled:
			use = "off"
		}
		list = append(list, key{k.ID, use})
		t.add(count(k.ID), use)
	}
	return c.printer().value(map[string][]key{"keys": list}, t)
}
