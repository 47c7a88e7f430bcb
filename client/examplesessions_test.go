package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/holdfastdb/holdfast/client"
)

// Log in, let in, log out: after the logout has returned, no validation succeeds anywhere.
func ExampleSessions() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	login, err := c.Sessions().Create(ctx, client.Login{UserID: "alice"})
	if err != nil {
		log.Fatal(err)
	}
	v, err := c.Sessions().Validate(ctx, login.Token)
	fmt.Println(v.Valid, v.Session.UserID, err)

	if _, err := c.Sessions().Logout(ctx, login.Token); err != nil {
		log.Fatal(err)
	}
	v, err = c.Sessions().Validate(ctx, login.Token)
	fmt.Println(v.Valid, v.Reason, v.Session.Ended, err)
	// Output:
	// true alice <nil>
	// false ended logged_out <nil>
}

// Half a second of staleness saves nearly all round trips.
func ExampleMaxStale() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	login, err := c.Sessions().Create(ctx, client.Login{UserID: "bob"})
	if err != nil {
		log.Fatal(err)
	}
	for range 3 {
		v, err := c.Sessions().Validate(ctx, login.Token, client.MaxStale(500*time.Millisecond))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(v.Valid, v.Age <= 500*time.Millisecond)
	}
	// Output:
	// true true
	// true true
	// true true
}

// An app on a phone keeps the refresh token, and exchanges it when the access token has expired. Each counts once.
func ExampleSessions_Refresh() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	login, err := c.Sessions().Create(ctx, client.Login{UserID: "carol", Type: client.MobileSession, RememberMe: true})
	if err != nil {
		log.Fatal(err)
	}
	next, err := c.Sessions().Refresh(ctx, login.RefreshToken)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("another pair:", next.Token != login.Token, next.RefreshToken != login.RefreshToken)

	_, err = c.Sessions().Refresh(ctx, next.Token) // not what it is for
	fmt.Println("refused:", errors.Is(err, client.ErrToken))
	// Output:
	// another pair: true true
	// refused: true
}

// Log out everywhere else, as after a change of the password.
func ExampleSessions_RevokeUser() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	var here client.Tokens
	for range 3 {
		if here, err = c.Sessions().Create(ctx, client.Login{UserID: "dave"}); err != nil {
			log.Fatal(err)
		}
	}
	n, err := c.Sessions().RevokeUser(ctx, "dave", client.Except(here.SessionID))
	if err != nil {
		log.Fatal(err)
	}
	left, err := c.Sessions().List(ctx, "dave")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "ended,", len(left), "left")
	// Output: 2 ended, 1 left
}

// Changes of different attributes at the same time all count; with a version, a change is made from what was read or not
// at all.
func ExampleSessions_SetAttributes() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	login, err := c.Sessions().Create(ctx, client.Login{UserID: "erin", Attributes: map[string]any{"cart": 1.0}})
	if err != nil {
		log.Fatal(err)
	}
	now, err := c.Sessions().SetAttributes(ctx, login.SessionID, client.AttributeChange{Set: map[string]any{"theme": "dark"}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(now.Values)

	_, err = c.Sessions().SetAttributes(ctx, login.SessionID, client.AttributeChange{
		Set: map[string]any{"cart": 2.0}, IfVersion: new(now.Version - 1),
	})
	fmt.Println("somebody changed it:", errors.Is(err, client.ErrConflict))
	// Output:
	// map[cart:1 theme:dark]
	// somebody changed it: true
}
