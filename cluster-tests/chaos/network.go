package chaos

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// clients is the number of this process, with its clients, in the network. Most faults do not touch it: a node that is cut
// off from the others must give no wrong answers to clients that reach it.
const clients = -1

// network is how the nodes of a cluster reach each other, and how that fails. Nodes count from 0.
type network interface {
	// place tells where a node lives.
	place(node int) place
	// cut loses what one node sends to another, on connections that exist too.
	cut(from, to int) error
	// impair makes the way from one node to another bad, but not hopeless.
	impair(from, to int) error
	// heal ends all that.
	heal() error
	close() error
	// String tells what it is and what impair does.
	String() string
}

// place is where a node lives.
type place struct {
	wrap                     []string // in front of the command line
	flags                    []string // of the node
	grpc, http, peer, gossip string   // to listen at
	grpcAt, gossipAt         string   // where others find it; HTTP is found where it listens
}

// newNetwork makes the best network that this machine allows: a namespace for each node, else loopback through proxies.
// pid tells the process of a node, with which the proxies find out who connects.
func newNetwork(nodes int, dir string, pid func(node int) int, logf func(string, ...any)) (network, error) {
	missing := missingForNamespaces()
	if missing == nil {
		return newNamespaces(nodes, dir)
	}
	logf("no network namespaces (%v): nodes are on loopback, behind proxies that cut and delay what goes between them; gossip is not cut", missing)
	return newProxies(nodes, pid)
}

// missingForNamespaces tells why nodes cannot have network namespaces here, nil if they can.
func missingForNamespaces() error {
	if os.Getenv("CHAOS_NETWORK") == "loopback" {
		return errors.New("CHAOS_NETWORK=loopback")
	}
	if os.Geteuid() != 0 {
		return errors.New("they need root")
	}
	for _, program := range []string{"ip", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("they need the program %s: install iproute2 and iptables", program)
		}
	}
	// The kernel may lack any of it.
	name := fmt.Sprintf("hfp%d", os.Getpid())
	if err := shell("ip", "netns", "add", name); err != nil {
		return err
	}
	err := shell("ip", "netns", "exec", name, "iptables", "-w", "-t", "raw", "-A", "PREROUTING", "-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "DROP")
	return errors.Join(err, shell("ip", "netns", "del", name))
}

// shell runs a program and returns what it said if it failed.
func shell(name string, args ...string) error { return feed("", name, args...) }

// feed is shell with a standard input.
func feed(input, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
