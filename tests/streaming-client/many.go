package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/util/exec"
)

var (
	container = flag.String("container", "", "a container with a shell, for exec")
	attachTo  = flag.String("attach", "", "a container that runs cat and has an input, for attach")
	pod       = flag.String("pod", "", "a pod with a web server, for port-forward")
	port      = flag.String("port", "80", "the web server's port")
	sessions  = flag.Int("sessions", 100, "sessions altogether")
	parallel  = flag.Int("parallel", 8, "sessions at once")
	megabytes = flag.Int("megabytes", 512, "what throughput carries")
	file      = flag.String("file", "/", "path of a large file on the web server")
)

// subjects are what sessions are had with.
type subjects struct{ container, attach, pod, port, server string }

func (s subjects) cat() what {
	return what{container: s.container, command: []string{"cat"}, stdin: true}
}

func (s subjects) attached() what { return what{container: s.attach, stdin: true} }

func fromFlags() (subjects, error) {
	s := subjects{*container, *attachTo, *pod, *port, ""}
	address, err := what{container: s.container, command: []string{"true"}}.url()
	if err != nil {
		return s, err
	}
	target, err := url.Parse(address)
	if err == nil {
		s.server = target.Host
	}
	return s, err
}

// Sessions that are had to their end.
var wholes = []struct {
	name string
	run  func(ctx context.Context, s subjects, transport string, number int) error
}{
	{"exec", func(ctx context.Context, s subjects, transport string, number int) error {
		code := number % 3
		w := what{container: s.container, command: []string{"sh", "-c", fmt.Sprintf("echo out; echo err >&2; exit %d", code)}}
		var out bytes.Buffer
		err := w.run(ctx, transport, nil, &out)
		var exit exec.CodeExitError
		if errors.As(err, &exit) && exit.Code == code || err == nil && code == 0 {
			err = nil
		} else {
			return fmt.Errorf("exit %d: %w", code, err)
		}
		return expect(out.String(), "out\n")
	}},
	{"exec with input", func(ctx context.Context, s subjects, transport string, number int) error {
		text := strings.Repeat(fmt.Sprintln("line", number), 2000)
		var out bytes.Buffer
		if err := s.cat().run(ctx, transport, strings.NewReader(text), &out); err != nil {
			return err
		}
		return expect(out.String(), text)
	}},
	{"exec with a terminal", func(ctx context.Context, s subjects, transport string, _ int) error {
		w := what{container: s.container, command: []string{"echo", "hello"}, tty: true, stdin: true}
		in, end := io.Pipe()
		defer end.Close()
		var out bytes.Buffer
		if err := w.run(ctx, transport, in, &out); err != nil {
			return err
		}
		return expect(out.String(), "hello\r\n")
	}},
	{"attach", func(ctx context.Context, s subjects, transport string, number int) error {
		word := fmt.Sprintf("<%d>", number)
		ctx, leave := context.WithCancel(ctx)
		defer leave()
		in, end := io.Pipe()
		defer end.Close()
		out := watch(word)
		ended := make(chan error, 1)
		go func() { ended <- s.attached().run(ctx, transport, in, out) }()
		go fmt.Fprintln(end, word)
		select {
		case <-out.seen:
		case err := <-ended:
			return fmt.Errorf("the attach ended before its word came: %w", err)
		}
		leave()
		<-ended
		return nil
	}},
	{"port-forward", func(_ context.Context, s subjects, transport string, _ int) error {
		connection, err := dial(transport, s.pod)
		if err != nil {
			return err
		}
		defer connection.Close()
		for number := range 3 {
			p, err := newPair(connection, s.port, number)
			if err != nil {
				return err
			}
			if err := p.get(); err != nil {
				return err
			}
			connection.RemoveStreams(p.data, p.failure)
		}
		return nil
	}},
}

func expect(got, expected string) error {
	if got != expected {
		return fmt.Errorf("got %.100q instead of %.100q", got, expected)
	}
	return nil
}

// soak has sessions of every kind and transport, and clients that vanish, in turn.
func soak() error {
	s, err := fromFlags()
	if err != nil {
		return err
	}
	var failed atomic.Int64
	counts := make([]atomic.Int64, len(wholes)+len(vanishings))
	run(*sessions, *parallel, func(number int) {
		// Each kind of whole session twice as often as each way to vanish.
		round := number % (2*len(wholes) + len(vanishings))
		name, kind := "", round
		var err error
		if round < 2*len(wholes) {
			whole := wholes[round/2]
			transport := []string{"spdy", "websocket"}[round%2]
			ctx, cancel := context.WithTimeout(context.Background(), sessionLimit)
			defer cancel()
			name, kind = whole.name+" over "+transport, round/2
			err = whole.run(ctx, s, transport, number)
		} else {
			vanishing := vanishings[round-2*len(wholes)]
			name, kind = "vanish "+vanishing.name, round-len(wholes)
			err = vanishing.run(s, number/len(counts)%2 == 0)
		}
		counts[kind].Add(1)
		if err != nil && failed.Add(1) <= 10 {
			fmt.Fprintf(os.Stderr, "session %d, %s: %v\n", number, name, err)
		}
	})
	for kind := range counts {
		name := ""
		if kind < len(wholes) {
			name = wholes[kind].name
		} else {
			name = "vanish " + vanishings[kind-len(wholes)].name
		}
		fmt.Printf("%6d %s\n", counts[kind].Load(), name)
	}
	if n := failed.Load(); n > 0 {
		return fmt.Errorf("%d of %d sessions failed", n, *sessions)
	}
	return nil
}

func run(count, parallel int, do func(number int)) {
	var all sync.WaitGroup
	places := make(chan struct{}, parallel)
	for number := range count {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			do(number)
		})
	}
	all.Wait()
}

// held is one session that stays open until it is told to end.
type held func() error

// hold opens the sessions that lines on standard input name (`exec ID`, `attach ID`, `forward ID`, a transport behind
// them if it is not SPDY), up to an empty line; tells how many are open; and ends them when the input ends.
func hold() error {
	type line struct{ kind, id, transport string }
	var lines []line
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() && input.Text() != "" {
		words := append(strings.Fields(input.Text()), "spdy")
		if len(words) < 3 {
			return fmt.Errorf("line %q", input.Text())
		}
		lines = append(lines, line{words[0], words[1], words[2]})
	}
	all, refusals := make([]held, len(lines)), make([]error, len(lines))
	run(len(lines), *parallel, func(number int) {
		l := lines[number]
		word := fmt.Sprintf("<%d>", number)
		switch l.kind {
		case "exec":
			all[number], refusals[number] = holdProcess(what{container: l.id, command: []string{"cat"}, stdin: true}, l.transport, word)
		case "attach":
			all[number], refusals[number] = holdProcess(what{container: l.id, stdin: true}, l.transport, word)
		case "forward":
			all[number], refusals[number] = holdForward(l.id, l.transport)
		}
	})
	refused := map[string]int{}
	for _, err := range refusals {
		if err != nil {
			refused[err.Error()]++
		}
	}
	fmt.Printf("open %d\n", len(lines)-len(slices.DeleteFunc(refusals, func(err error) bool { return err == nil })))
	for words, count := range refused {
		fmt.Printf("refused %d %s\n", count, strings.ReplaceAll(words, "\n", " "))
	}
	fmt.Println("end")
	for input.Scan() {
	}
	var failed atomic.Int64
	run(len(all), *parallel, func(number int) {
		if all[number] == nil {
			return
		}
		if err := all[number](); err != nil && failed.Add(1) <= 10 {
			fmt.Fprintf(os.Stderr, "session %d: %v\n", number, err)
		}
	})
	if n := failed.Load(); n > 0 {
		return fmt.Errorf("%d sessions did not end well", n)
	}
	return nil
}

// holdProcess is open when what it said came back.
func holdProcess(w what, transport, word string) (held, error) {
	ctx, leave := context.WithCancel(context.Background())
	in, end := io.Pipe()
	out := watch(word)
	ended := make(chan error, 1)
	go func() { ended <- w.run(ctx, transport, in, out) }()
	go fmt.Fprintln(end, word)
	select {
	case <-out.seen:
	case err := <-ended:
		leave()
		end.Close()
		return nil, fmt.Errorf("ended at once: %w", err)
	}
	return func() error {
		defer leave()
		if w.command == nil {
			// Others are attached, too: only this client leaves.
			leave()
			<-ended
			return nil
		}
		end.Close()
		return <-ended
	}, nil
}

func holdForward(pod, transport string) (held, error) {
	connection, err := dial(transport, pod)
	if err != nil {
		return nil, err
	}
	p, err := newPair(connection, *port, 1)
	if err != nil {
		connection.Close()
		return nil, err
	}
	return func() error {
		defer connection.Close()
		return p.get()
	}, nil
}

// times has sessions of `true` one after the other and prints the milliseconds of each, from the CRI call to the status.
func times() error {
	w := what{container: *container, command: []string{"true"}}
	for range *sessions {
		start := time.Now()
		if err := w.run(context.Background(), *transport, nil, io.Discard); err != nil {
			return err
		}
		fmt.Printf("%.1f\n", float64(time.Since(start).Microseconds())/1000)
	}
	return nil
}

// throughput fetches a file through one forwarded connection and prints the milliseconds that it took.
func throughput() error {
	connection, err := dial(*transport, *pod)
	if err != nil {
		return err
	}
	defer connection.Close()
	p, err := newPair(connection, *port, 1)
	if err != nil {
		return err
	}
	start := time.Now()
	if _, err := fmt.Fprintf(p.data, "GET %s HTTP/1.0\r\n\r\n", *file); err != nil {
		return err
	}
	// What a program that forwards would use for its copies.
	count, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, p.data, make([]byte, 32<<10))
	if err != nil {
		return err
	}
	if count < int64(*megabytes)<<20 {
		return fmt.Errorf("%s has %d bytes only", *file, count)
	}
	fmt.Printf("%.1f\n", float64(time.Since(start).Microseconds())/1000)
	return nil
}
