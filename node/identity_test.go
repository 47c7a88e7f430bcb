package node

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A power cut takes nothing away that was synced: not the data directory either, however deep it was made.
func TestTheDataDirectorySurvivesAPowerCut(t *testing.T) {
	for _, dir := range []string{"data", "srv/holdfast/data"} {
		disk := vfs.NewCrashableMem()
		if err := makeDir(disk, dir); err != nil {
			t.Fatal(err)
		}
		id := identity{NodeID: newID(), ClusterID: newID()}
		if err := id.save(disk, dir); err != nil {
			t.Fatal(err)
		}
		found, ok, err := loadIdentity(disk.CrashClone(vfs.CrashCloneCfg{}), dir)
		if err != nil || !ok || found != id {
			t.Errorf("in %s: %+v, %v, %v", dir, found, ok, err)
		}
	}
}
