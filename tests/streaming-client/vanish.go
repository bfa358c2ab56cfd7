package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/gorilla/websocket"
	"github.com/moby/spdystream"
)

// Ways to go without a word, from before the request to the middle of everything.
// Each leaves nothing behind but what its command takes to notice: commands end
// with their input or their terminal.
var vanishings = []struct {
	name string
	run  func(s subjects, reset bool) error
}{
	{"before the request", func(s subjects, reset bool) error {
		return vanishEarly(s, reset, "")
	}},
	{"within the request", func(s subjects, reset bool) error {
		return vanishEarly(s, reset, "POST /exec/")
	}},
	{"before the answer", func(s subjects, reset bool) error {
		address, err := s.cat().url()
		if err != nil {
			return err
		}
		return vanishAsking(address, reset)
	}},
	{"before its streams", func(s subjects, reset bool) error { return vanishWith(s.cat(), reset, 0, nil) }},
	{"between its streams", func(s subjects, reset bool) error { return vanishWith(s.cat(), reset, 2, nil) }},
	{"after its streams", func(s subjects, reset bool) error { return vanishWith(s.cat(), reset, 4, nil) }},
	{"while the command waits for input", func(s subjects, reset bool) error {
		return vanishWith(s.cat(), reset, 4, func(streams []*spdystream.Stream) error { return echo(streams[1], streams[2]) })
	}},
	{"with a terminal", func(s subjects, reset bool) error {
		w := what{container: s.container, command: []string{"sh", "-c", "echo up; exec sleep 1000"}, tty: true, stdin: true}
		return vanishWith(w, reset, 4, func(streams []*spdystream.Stream) error { return first(streams[2]) })
	}},
	{"amid output", func(s subjects, reset bool) error {
		w := what{container: s.container, command: []string{"dd", "if=/dev/zero", "bs=65536", "count=100"}}
		return vanishWith(w, reset, 3, func(streams []*spdystream.Stream) error { return first(streams[1]) })
	}},
	{"amid input", func(s subjects, reset bool) error {
		w := what{container: s.container, command: []string{"sh", "-c", "echo up; exec cat >/dev/null"}, stdin: true}
		return vanishWith(w, reset, 4, func(streams []*spdystream.Stream) error {
			if err := first(streams[2]); err != nil {
				return err
			}
			piece := make([]byte, 32<<10)
			for n := 0; n < 64; n++ {
				if _, err := streams[1].Write(piece); err != nil {
					return err
				}
			}
			return nil
		})
	}},
	{"from an attach", func(s subjects, reset bool) error {
		return vanishWith(s.attached(), reset, 4, func(streams []*spdystream.Stream) error { return echo(streams[1], streams[2]) })
	}},
	{"from a forwarded port", vanishForwarding},
	{"from a WebSocket at once", func(s subjects, reset bool) error { return vanishWebSocket(s.cat(), reset, false) }},
	{"from a WebSocket that runs", func(s subjects, reset bool) error { return vanishWebSocket(s.cat(), reset, true) }},
	{"from an attached WebSocket", func(s subjects, reset bool) error { return vanishWebSocket(s.attached(), reset, true) }},
}

// gone closes a socket, by a reset or by the usual end.
func gone(connection net.Conn, reset bool) {
	if tcp, ok := connection.(*net.TCPConn); ok && reset {
		tcp.SetLinger(0)
	}
	connection.Close()
}

// vanishEarly uses no token: those that nobody comes for are bounded in number.
func vanishEarly(s subjects, reset bool, words string) error {
	connection, err := net.Dial("tcp", s.server)
	if err != nil {
		return err
	}
	defer gone(connection, reset)
	_, err = io.WriteString(connection, words)
	return err
}

func ask(address string) (net.Conn, error) {
	target, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	connection, err := net.Dial("tcp", target.Host)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(connection, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"+
		"Content-Length: 0\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n",
		target.Path, target.Host)
	return connection, err
}

func vanishAsking(address string, reset bool) error {
	connection, err := ask(address)
	if err == nil {
		gone(connection, reset)
	}
	return err
}

// upgraded is a connection of which the caller has to vanish.
func upgraded(address string) (net.Conn, *spdystream.Connection, error) {
	connection, err := ask(address)
	if err != nil {
		return nil, nil, err
	}
	// The server says nothing behind its answer before it is asked.
	answer, err := http.ReadResponse(bufio.NewReader(connection), nil)
	if err == nil && answer.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("upgrade: %s", answer.Status)
	}
	var speaking *spdystream.Connection
	if err == nil {
		speaking, err = spdystream.NewConnection(connection, false)
	}
	if err != nil {
		connection.Close()
		return nil, nil, err
	}
	go speaking.Serve(spdystream.NoOpStreamHandler)
	return connection, speaking, nil
}

func openStream(speaking *spdystream.Connection, headers http.Header) (*spdystream.Stream, error) {
	stream, err := speaking.CreateStream(headers, nil, false)
	if err != nil {
		return nil, err
	}
	return stream, stream.WaitTimeout(sessionLimit)
}

// vanishWith opens that many streams of a session, error first, and does a bit.
func vanishWith(w what, reset bool, count int, do func([]*spdystream.Stream) error) error {
	address, err := w.url()
	if err != nil {
		return err
	}
	connection, speaking, err := upgraded(address)
	if err != nil {
		return err
	}
	defer gone(connection, reset)
	kinds := []string{"error"}
	if w.stdin {
		kinds = append(kinds, "stdin")
	}
	kinds = append(kinds, "stdout")
	if w.tty {
		kinds = append(kinds, "resize")
	} else {
		kinds = append(kinds, "stderr")
	}
	var streams []*spdystream.Stream
	for _, kind := range kinds[:min(count, len(kinds))] {
		stream, err := openStream(speaking, http.Header{"streamtype": {kind}})
		if err != nil {
			return err
		}
		streams = append(streams, stream)
	}
	if do == nil {
		return nil
	}
	return do(streams)
}

func first(output io.Reader) error {
	_, err := output.Read(make([]byte, 1))
	return err
}

func echo(input io.Writer, output io.Reader) error {
	if _, err := io.WriteString(input, "hello\n"); err != nil {
		return err
	}
	return first(output)
}

func vanishForwarding(s subjects, reset bool) error {
	address, err := forwardURL(s.pod)
	if err != nil {
		return err
	}
	connection, speaking, err := upgraded(address)
	if err != nil {
		return err
	}
	defer gone(connection, reset)
	for number := 0; number < 3; number++ {
		headers := http.Header{"streamtype": {"error"}, "port": {s.port}, "requestid": {fmt.Sprint(number)}}
		if _, err := openStream(speaking, headers); err != nil {
			return err
		}
		headers = headers.Clone()
		headers["streamtype"] = []string{"data"}
		data, err := openStream(speaking, headers)
		if err != nil {
			return err
		}
		// The last answer is still on its way when the connection ends.
		if _, err := io.WriteString(data, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
	}
	return nil
}

func vanishWebSocket(w what, reset, running bool) error {
	address, err := w.url()
	if err != nil {
		return err
	}
	dialer := websocket.Dialer{Subprotocols: []string{"v5.channel.k8s.io"}}
	connection, _, err := dialer.Dial("ws"+address[len("http"):], nil)
	if err != nil {
		return err
	}
	defer gone(connection.NetConn(), reset)
	if !running {
		return nil
	}
	if err := connection.WriteMessage(websocket.BinaryMessage, []byte("\x00hello\n")); err != nil {
		return err
	}
	for {
		_, message, err := connection.ReadMessage()
		if err != nil {
			return err
		}
		// The first message is empty: it says that the session is there.
		if len(message) > 1 {
			return nil
		}
	}
}
