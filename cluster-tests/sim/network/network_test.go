package network

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// inBubble runs f with two hosts and a connection from the first to the second.
func inBubble(t *testing.T, f func(t *testing.T, n *Network, a, b *Host, dialed, accepted net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		l, err := b.Listen(80)
		if err != nil {
			t.Fatal(err)
		}
		dialed, err := a.Dial(t.Context(), b.Addr(80))
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		f(t, n, a, b, dialed, accepted)
	})
}

// read reads what is there within a second.
func read(t *testing.T, c net.Conn) (string, error) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestBytesNeedTimeAndArriveInOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, a, b *Host, dialed, accepted net.Conn) {
		n.SetQuality(Link{a.IP(), b.IP()}, Quality{Latency: 100 * time.Millisecond, Jitter: 100 * time.Millisecond})
		begin := time.Now()
		for _, text := range []string{"one", "two", "three"} {
			send(t, dialed, text)
		}
		for _, want := range []string{"one", "two", "three"} {
			if got, err := read(t, accepted); got != want || err != nil {
				t.Errorf("read %q, %v, want %q", got, err, want)
			}
		}
		if took := time.Since(begin); took < 100*time.Millisecond || took > 200*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		if err := dialed.Close(); err != nil {
			t.Error(err)
		}
		if _, err := read(t, accepted); !errors.Is(err, io.EOF) {
			t.Errorf("after the other end was closed: %v", err)
		}
	})
}

func TestACutHoldsOneDirectionUpUntilItIsHealed(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, a, b *Host, dialed, accepted net.Conn) {
		n.Cut(Link{a.IP(), b.IP()})
		send(t, dialed, "held")
		send(t, accepted, "through")
		if got, err := read(t, dialed); got != "through" || err != nil {
			t.Errorf("the other direction: %q, %v", got, err)
		}
		var timeout net.Error
		if got, err := read(t, accepted); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("through the cut: %q, %v", got, err)
		}
		n.Heal(Link{a.IP(), b.IP()})
		if got, err := read(t, accepted); got != "held" || err != nil {
			t.Errorf("after it was healed: %q, %v", got, err)
		}
		n.Cut(Link{b.IP(), a.IP()})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := a.Dial(ctx, b.Addr(80)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("connecting without a way back: %v", err)
		}
	})
}

// Faults that overlap do not heal each other's cuts, and a cut tells whether it has stopped anything.
func TestALinkThatIsCutTwiceIsHealedTwice(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, a, b *Host, dialed, accepted net.Conn) {
		there := Link{a.IP(), b.IP()}
		n.Cut(there)
		n.Cut(there)
		if stopped := n.Stopped(there); stopped != 0 {
			t.Errorf("%d are stopped before there is anything", stopped)
		}
		send(t, dialed, "held")
		n.Heal(there)
		var timeout net.Error
		if got, err := read(t, accepted); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("healed once: %q, %v", got, err)
		}
		if n.Stopped(there) == 0 {
			t.Error("nothing was stopped")
		}
		n.Heal(there)
		if got, err := read(t, accepted); got != "held" || err != nil {
			t.Errorf("healed twice: %q, %v", got, err)
		}
		n.Cut(there)
		n.Cut(there)
		n.HealAll()
		send(t, dialed, "through")
		if got, err := read(t, accepted); got != "through" || err != nil {
			t.Errorf("all healed: %q, %v", got, err)
		}
	})
}

func TestAKilledProcessResetsItsConnectionsAndPowerCutsAreSilent(t *testing.T) {
	for _, silent := range []bool{false, true} {
		inBubble(t, func(t *testing.T, n *Network, a, b *Host, dialed, accepted net.Conn) {
			b.Down(silent)
			_, err := read(t, dialed)
			if reset := errors.Is(err, errReset); reset == silent {
				t.Errorf("silent %v: the other end reads %v", silent, err)
			}
			if _, err := read(t, accepted); !errors.Is(err, errDown) {
				t.Errorf("silent %v: its own end reads %v", silent, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := a.Dial(ctx, b.Addr(80)); errors.Is(err, errRefused) == silent {
				t.Errorf("silent %v: connecting gives %v", silent, err)
			}
			n.Host(b.IP()) // the machine is back, and knows nothing of its connections
			if _, err := read(t, dialed); !errors.Is(err, errReset) {
				t.Errorf("silent %v: after it is back, the other end reads %v", silent, err)
			}
		})
	}
}

func TestWritersWaitForReaders(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, a, b *Host, dialed, accepted net.Conn) {
		send(t, dialed, string(make([]byte, window)))
		if err := dialed.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		var timeout net.Error
		if _, err := dialed.Write([]byte("more")); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("with a full window: %v", err)
		}
		if _, err := io.ReadFull(accepted, make([]byte, window)); err != nil {
			t.Fatal(err)
		}
		if err := dialed.SetWriteDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		send(t, dialed, "more")
		if got, err := read(t, accepted); got != "more" || err != nil {
			t.Errorf("after the reader has caught up: %q, %v", got, err)
		}
	})
}

func TestPacketsGetLostAndRepeated(t *testing.T) {
	for name, tt := range map[string]struct {
		q           Quality
		least, most int
	}{
		"good":      {Quality{}, 100, 100},
		"lossy":     {Quality{Loss: 50}, 20, 80},
		"repeating": {Quality{Repeat: 50}, 120, 180},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := New(1)
			from, err := n.Host("10.0.0.1").Packets(1)
			if err != nil {
				t.Fatal(err)
			}
			to, err := n.Host("10.0.0.2").Packets(1)
			if err != nil {
				t.Fatal(err)
			}
			n.SetQuality(Link{"10.0.0.1", "10.0.0.2"}, tt.q)
			for range 100 {
				if _, err := from.WriteTo([]byte("x"), "10.0.0.2:1"); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second)
			if got := len(to.packets); got < tt.least || got > tt.most {
				t.Errorf("%s: %d packets arrived", name, got)
			}
			if err := errors.Join(from.Shutdown(), to.Shutdown()); err != nil {
				t.Error(err)
			}
		})
	}
}
