package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
)

// How long one session of many may take from its beginning to its end.
const sessionLimit = 2 * time.Minute

func config() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

func executor(transport, address string) (remotecommand.Executor, error) {
	if transport == "websocket" {
		return remotecommand.NewWebSocketExecutor(config(), http.MethodGet, address)
	}
	target, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutor(config(), http.MethodPost, target)
}

// run asks for the session and has it to its end.
func (w what) run(ctx context.Context, transport string, in io.Reader, out io.Writer) error {
	address, err := w.url()
	if err != nil {
		return err
	}
	exec, err := executor(transport, address)
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Stdout: out, Tty: w.tty}
	if !w.tty {
		options.Stderr = io.Discard
	}
	if w.stdin {
		options.Stdin = in
	}
	return exec.StreamWithContext(ctx, options)
}

// watched collects what comes and tells when it contains a word.
type watched struct {
	lock sync.Mutex
	text bytes.Buffer
	word string
	seen chan struct{}
}

func watch(word string) *watched { return &watched{word: word, seen: make(chan struct{})} }

func (w *watched) Write(data []byte) (int, error) {
	w.lock.Lock()
	defer w.lock.Unlock()
	if w.word != "" {
		w.text.Write(data)
		if bytes.Contains(w.text.Bytes(), []byte(w.word)) {
			w.word = ""
			close(w.seen)
		}
		// Others' words may come for ever.
		if over := w.text.Len() - 1<<16; over > 0 {
			w.text.Next(over)
		}
	}
	return len(data), nil
}

// dial connects for port-forward, as kubectl does below its listener.
func dial(transport, pod string) (httpstream.Connection, error) {
	address, err := forwardURL(pod)
	if err != nil {
		return nil, err
	}
	target, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	dialer, err := dialer(transport, target)
	if err != nil {
		return nil, err
	}
	connection, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	return connection, err
}

func dialer(transport string, target *url.URL) (httpstream.Dialer, error) {
	if transport == "websocket" {
		return portforward.NewSPDYOverWebsocketDialer(target, config())
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config())
	if err != nil {
		return nil, err
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, target), nil
}

// pair is one forwarded connection.
type pair struct{ data, failure httpstream.Stream }

func newPair(connection httpstream.Connection, port string, number int) (pair, error) {
	headers := http.Header{}
	headers.Set("streamType", "error")
	headers.Set("port", port)
	headers.Set("requestID", strconv.Itoa(number))
	failure, err := connection.CreateStream(headers)
	if err != nil {
		return pair{}, err
	}
	failure.Close()
	headers.Set("streamType", "data")
	data, err := connection.CreateStream(headers)
	return pair{data, failure}, err
}

// get fetches a page over the pair, to its end.
func (p pair) get() error {
	if _, err := io.WriteString(p.data, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	answer, err := io.ReadAll(p.data)
	if err != nil {
		return err
	}
	// As kubectl does when the pod has ended its half.
	p.data.Reset()
	words, err := io.ReadAll(p.failure)
	if err != nil || len(words) > 0 {
		return fmt.Errorf("the error stream: %q, %v", words, err)
	}
	if !strings.HasPrefix(string(answer), "HTTP/1.") {
		return fmt.Errorf("no HTTP answer: %q", answer)
	}
	return nil
}
