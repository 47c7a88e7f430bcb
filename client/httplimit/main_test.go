package httplimit_test

import (
	"os"
	"testing"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/holdfasttest"
)

// cluster is one real cluster for all tests and examples of the package, and sdk is connected to it. Each test limits
// clients of its own.
var (
	cluster *holdfasttest.Cluster
	sdk     *client.Client
)

func TestMain(m *testing.M) {
	os.Exit(holdfasttest.Main(m, 1, func(c *holdfasttest.Cluster) { cluster, sdk = c, c.Client() }))
}
