package raftnet

import (
	"context"
	"testing"
	"time"
)

func TestTmpKeepalive(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	a, c := startNode(t, b, "a", Config{}), startNode(t, b, "c", Config{})
	defer a.close()
	defer c.close()
	c.Handle("echo", func(context.Context, string, []byte) ([]byte, error) { return nil, nil })
	if _, err := a.Call(t.Context(), "c", "echo", nil); err != nil {
		t.Fatal(err)
	}
	p, _ := a.peer("c")
	conn, _ := p.conn(callConn)
	s := conn.GetState()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	if conn.WaitForStateChange(ctx, s) {
		t.Fatalf("connection went from %v to %v", s, conn.GetState())
	}
}
