package grpclimit_test

import (
	"context"
	"fmt"
	"log"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/grpclimit"
)

// Limit the calls of a server by the API key that their metadata have.
func Example() {
	defer cluster.Quota("example", "client", "key-1", 1)()
	ctx := context.Background()

	c, err := client.Dial(ctx, client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	l := grpclimit.New(c.Limits(), grpclimit.ByMetadata("x-api-key"))
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(l.Unary), grpc.ChainStreamInterceptor(l.Stream))
	grpc_health_v1.RegisterHealthServer(server, health.NewServer()) // your services

	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() { _ = server.Serve(lis) }()
	defer server.Stop()

	conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-api-key", "key-1")
	for range 2 {
		_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		fmt.Println(status.Code(err))
	}
	// Output:
	// OK
	// ResourceExhausted
}

// Limit some methods only, and refuse calls while no decision can be had.
func ExampleLimiter() {
	c, err := client.Dial(context.Background(), client.Config{Addrs: cluster.Addrs()})
	if err != nil {
		log.Fatal(err)
	}
	l := grpclimit.New(c.Limits(), func(_ context.Context, method string) (client.Request, bool) {
		return client.Request{Client: "one tenant", Resource: method}, method != "/grpc.health.v1.Health/Check"
	})
	l.FailClosed = true

	_ = c.Close() // from now on there are no decisions
	handler := func(context.Context, any) (any, error) { return "served", nil }
	for _, method := range []string{"/shop.Orders/List", "/grpc.health.v1.Health/Check"} {
		answer, err := l.Unary(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: method}, handler)
		fmt.Println(method, answer, status.Code(err))
	}
	// Output:
	// /shop.Orders/List <nil> Unavailable
	// /grpc.health.v1.Health/Check served OK
}
