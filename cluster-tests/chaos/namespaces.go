package chaos

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// lossShare of the packets are lost on an impaired way.
const lossShare = 0.15

// namespaces gives each node a network namespace of its own with one interface, all on a bridge in one more namespace,
// to which this process is connected too. Rules are in the receiver's raw table, in front of connection tracking.
type namespaces struct {
	id     string
	subnet string // the first three bytes of all addresses
	nodes  int
	key    string // file with the gossip key, without which nodes do not gossip off loopback
}

func newNamespaces(nodes int, dir string) (_ *namespaces, err error) {
	removeOrphans()
	n := &namespaces{
		id: fmt.Sprintf("hfc%d", os.Getpid()), subnet: fmt.Sprintf("10.%d.%d", 64+os.Getpid()/250%64, os.Getpid()%250),
		nodes: nodes, key: filepath.Join(dir, "gossip.key"),
	}
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	if err := os.WriteFile(n.key, []byte(hex.EncodeToString(key[:])), 0o600); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make network namespaces: %w", err), n.close())
		}
	}()
	var outside, hub strings.Builder
	fmt.Fprintf(&outside, "netns add %sh\nlink add %sv type veth peer name h0 netns %sh\n", n.id, n.id, n.id)
	fmt.Fprintf(&outside, "addr add %s/24 dev %sv\nlink set %sv up\n", n.addr(clients), n.id, n.id)
	fmt.Fprintf(&hub, "link add br0 type bridge\nlink set br0 up\nlink set h0 master br0\nlink set h0 up\n")
	for i := range nodes {
		fmt.Fprintf(&outside, "netns add %s\nlink add eth0 netns %s type veth peer name p%d netns %sh\n", n.name(i), n.name(i), i, n.id)
		fmt.Fprintf(&hub, "link set p%d master br0\nlink set p%d up\n", i, i)
	}
	if err := feed(outside.String(), "ip", "-batch", "-"); err != nil {
		return nil, err
	}
	if err := feed(hub.String(), "ip", "-n", n.id+"h", "-batch", "-"); err != nil {
		return nil, err
	}
	for i := range nodes {
		inside := fmt.Sprintf("addr add %s/24 dev eth0\nlink set eth0 up\nlink set lo up\n", n.addr(i))
		if err := feed(inside, "ip", "-n", n.name(i), "-batch", "-"); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// removeOrphans removes the namespaces of test processes that were killed, and ends the nodes that are still in them.
func removeOrphans() {
	all, _ := filepath.Glob("/var/run/netns/hfc*")
	for _, path := range all {
		var pid int
		name := filepath.Base(path)
		if _, err := fmt.Sscanf(name, "hfc%d", &pid); err != nil {
			continue
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		inside, _ := exec.Command("ip", "netns", "pids", name).Output()
		for _, text := range strings.Fields(string(inside)) {
			if node, err := strconv.Atoi(text); err == nil {
				_ = syscall.Kill(node, syscall.SIGKILL)
			}
		}
		_ = shell("ip", "netns", "del", name) // somebody else may do the same
	}
}

func (n *namespaces) name(node int) string { return fmt.Sprintf("%sn%d", n.id, node) }

// addr is the address of a node. That of this process is the last one.
func (n *namespaces) addr(node int) string {
	if node == clients {
		return n.subnet + ".254"
	}
	return fmt.Sprintf("%s.%d", n.subnet, node+1)
}

func (n *namespaces) String() string {
	return fmt.Sprintf("network namespaces, bad links lose %.0f %% of the packets", 100*lossShare)
}

func (n *namespaces) place(node int) place {
	at := func(port int) string { return fmt.Sprintf("%s:%d", n.addr(node), port) }
	return place{
		wrap: []string{"ip", "netns", "exec", n.name(node)}, flags: []string{"--insecure", "--gossip-key-file", n.key},
		grpc: at(7400), http: at(7480), peer: at(7401), gossip: at(7402), grpcAt: at(7400), gossipAt: at(7402),
	}
}

// rule loses packets where they arrive. This process has no namespace of its own: what goes there is lost where it leaves.
func (n *namespaces) rule(from, to int, match ...string) error {
	at, args := n.name(to), []string{"-A", "PREROUTING", "-s", n.addr(from)}
	if to == clients {
		at, args = n.name(from), []string{"-A", "OUTPUT", "-d", n.addr(to)}
	}
	args = slices.Concat([]string{"netns", "exec", at, "iptables", "-w", "-t", "raw"}, args, match, []string{"-j", "DROP"})
	return shell("ip", args...)
}

func (n *namespaces) cut(from, to int) error { return n.rule(from, to) }

func (n *namespaces) impair(from, to int) error {
	return n.rule(from, to, "-m", "statistic", "--mode", "random", "--probability", fmt.Sprint(lossShare))
}

func (n *namespaces) heal() error {
	var errs []error
	for i := range n.nodes {
		errs = append(errs, shell("ip", "netns", "exec", n.name(i), "iptables", "-w", "-t", "raw", "-F"))
	}
	return errors.Join(errs...)
}

func (n *namespaces) close() error {
	// The interface would go with its other end, but only some time after the namespace; the next history's has its name.
	errs := []error{shell("ip", "link", "del", n.id+"v")}
	for i := range n.nodes {
		errs = append(errs, shell("ip", "netns", "del", n.name(i)))
	}
	return errors.Join(append(errs, shell("ip", "netns", "del", n.id+"h"))...)
}
