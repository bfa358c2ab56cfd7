// Command streaming-client speaks to a streaming server as kubectl and the API
// server do: with the executors of k8s.io/client-go. `stream` and `forward` have
// one session; `soak`, `hold`, `times` and `throughput` have many and ask a CRI
// runtime for their URLs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/klog/v2"
)

var (
	transport = flag.String("transport", "spdy", "spdy or websocket")
	tty       = flag.Bool("tty", false, "the session has a terminal")
	stdin     = flag.Bool("stdin", false, "send standard input")
	sizes     = flag.String("sizes", "", "sizes of the terminal, such as 80x24,100x50, a second apart")
	requests  = flag.Int("requests", 1, "how often the path is fetched over one forwarded port, at once ten")
	path      = flag.String("path", "/", "what is fetched over a forwarded port")
)

func main() {
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, "usage: streaming-client [flags] stream URL\n       streaming-client [flags] forward URL PORT\n"+
			"       streaming-client -cri SOCKET [flags] soak | hold | times | throughput\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	switch flag.Arg(0) {
	case "soak", "hold":
		// What the library has to say of sessions that are broken off is no news.
		log := flag.NewFlagSet("klog", flag.PanicOnError)
		klog.InitFlags(log)
		log.Parse([]string{"-logtostderr=false", "-stderrthreshold=FATAL"})
		klog.SetOutput(io.Discard)
	}
	var err error
	switch {
	case flag.Arg(0) == "stream" && flag.NArg() == 2:
		err = stream(flag.Arg(1))
	case flag.Arg(0) == "forward" && flag.NArg() == 3:
		err = forward(flag.Arg(1), flag.Arg(2))
	case flag.Arg(0) == "soak" && flag.NArg() == 1:
		err = soak()
	case flag.Arg(0) == "hold" && flag.NArg() == 1:
		err = hold()
	case flag.Arg(0) == "times" && flag.NArg() == 1:
		err = times()
	case flag.Arg(0) == "throughput" && flag.NArg() == 1:
		err = throughput()
	default:
		flag.Usage()
		os.Exit(64)
	}
	var exit exec.CodeExitError
	if errors.As(err, &exit) {
		os.Exit(exit.Code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "streaming-client:", err)
		os.Exit(255)
	}
}

// queue hands out the sizes of the -sizes flag, the first at once.
type queue struct {
	left    []remotecommand.TerminalSize
	started bool
}

func (q *queue) Next() *remotecommand.TerminalSize {
	if len(q.left) == 0 {
		return nil
	}
	if q.started {
		time.Sleep(time.Second)
	}
	size := q.left[0]
	q.left, q.started = q.left[1:], true
	return &size
}

func stream(address string) error {
	executor, err := executor(*transport, address)
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Stdout: os.Stdout, Tty: *tty}
	if !*tty {
		options.Stderr = os.Stderr
	}
	if *stdin {
		options.Stdin = os.Stdin
	}
	if *sizes != "" {
		q := &queue{}
		for _, text := range strings.Split(*sizes, ",") {
			var size remotecommand.TerminalSize
			if _, err := fmt.Sscanf(text, "%dx%d", &size.Width, &size.Height); err != nil {
				return fmt.Errorf("size %q: %w", text, err)
			}
			q.left = append(q.left, size)
		}
		options.TerminalSizeQueue = q
	}
	return executor.StreamWithContext(context.Background(), options)
}

// forward listens on a port of its own and fetches the path from there.
func forward(address, port string) error {
	target, err := url.Parse(address)
	if err != nil {
		return err
	}
	dialer, err := dialer(*transport, target)
	if err != nil {
		return err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:" + port}, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		return err
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		return err
	}
	// A connection for each request: a pair of streams.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	from := fmt.Sprintf("http://127.0.0.1:%d%s", ports[0].Local, *path)
	results := make(chan error)
	places := make(chan struct{}, 10)
	go func() {
		for n := 0; n < *requests; n++ {
			places <- struct{}{}
			go func() { results <- fetch(client, from, n == 0); <-places }()
		}
	}()
	for n := 0; n < *requests; n++ {
		if err := <-results; err != nil {
			return err
		}
	}
	close(stop)
	return <-ended
}

// fetch reads a page; the first is shown.
func fetch(client *http.Client, from string, show bool) error {
	response, err := client.Get(from)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", from, response.Status)
	}
	if show {
		_, err = os.Stdout.Write(body)
	}
	return err
}
