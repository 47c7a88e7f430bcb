package main

import (
	buildinfo "runtime/debug"

	"github.com/spf13/cobra"
)

// version is what the build knows of itself.
type version struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Modified bool   `json:"modified"` // built from more than the commit
	Go       string `json:"go"`
}

func buildVersion() version {
	v := version{Version: "unknown", Commit: "unknown"}
	info, ok := buildinfo.ReadBuildInfo()
	if !ok {
		return v
	}
	v.Version, v.Go = info.Main.Version, info.GoVersion
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func newVersion(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Tell what this program was built from", Example: "  holdfast version\n  holdfast version -o json", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := buildVersion()
			t := &table{}
			t.add("holdfast " + v.Version)
			t.add("commit " + v.Commit)
			t.add(v.Go)
			return c.printer().value(v, t)
		},
	}
}
