package main

import (
	"context"
	"errors"
	"flag"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var endpoint = flag.String("cri", "", "unix socket of the CRI runtime, which is asked for URLs")

// How long the runtime may take to give a URL.
const urlLimit = 30 * time.Second

// runtime is the connection, as a kubelet has one: made once and kept.
var runtime = sync.OnceValues(func() (cri.RuntimeServiceClient, error) {
	if *endpoint == "" {
		return nil, errors.New("-cri is missing")
	}
	target := "unix://" + strings.TrimPrefix(*endpoint, "unix://")
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return cri.NewRuntimeServiceClient(connection), nil
})

// what describes a session with a process.
type what struct {
	container string
	// Attach without one.
	command []string
	tty     bool
	stdin   bool
}

// url asks for the place where the session is to be had.
func (w what) url() (string, error) {
	client, err := runtime()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), urlLimit)
	defer cancel()
	if w.command == nil {
		answer, err := client.Attach(ctx, &cri.AttachRequest{
			ContainerId: w.container, Tty: w.tty, Stdin: w.stdin, Stdout: true, Stderr: !w.tty,
		})
		return answer.GetUrl(), err
	}
	answer, err := client.Exec(ctx, &cri.ExecRequest{
		ContainerId: w.container, Cmd: w.command, Tty: w.tty, Stdin: w.stdin, Stdout: true, Stderr: !w.tty,
	})
	return answer.GetUrl(), err
}

func forwardURL(pod string) (string, error) {
	client, err := runtime()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), urlLimit)
	defer cancel()
	answer, err := client.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: pod})
	return answer.GetUrl(), err
}
