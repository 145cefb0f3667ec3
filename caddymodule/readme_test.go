package caddymodule

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadme runs every command of the README's transcript against a real
// server and compares what is printed with what the README says. Ids, secrets
// and times differ from run to run; an id that the README repeats must repeat.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t)
	example, err := filepath.Abs("../Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	s.start(example)
	binary, err := exec.LookPath(caddyBinary())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binary, filepath.Join(s.dir, "caddy")); err != nil {
		t.Fatal(err)
	}

	actual := map[string]string{} // what the README calls something, and what it is here
	real := func(line string) string {
		line = strings.ReplaceAll(line, "localhost:8080", s.addr("API_PORT"))
		for readme, here := range actual {
			line = strings.ReplaceAll(line, readme, here)
		}
		return line
	}
	var exports []string
	steps := transcript(string(text))
	if len(steps) < 8 {
		t.Fatalf("the README has %d commands in its transcript, at least 8 were there", len(steps))
	}
	for _, step := range steps {
		if strings.HasPrefix(step.command, "export ") {
			exports = append(exports, real(step.command)+"; ")
			continue
		}
		cmd := exec.Command("sh", "-c", strings.Join(exports, "")+real(step.command))
		cmd.Dir, cmd.Env = s.dir, s.env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("$ %s\n%v: %s", step.command, err, out)
		}
		learn(actual, step.output, string(out))
		if got, want := stable(string(out)), stable(real(step.output)); got != want {
			t.Errorf("$ %s\ngot:\n%s\nwant:\n%s", step.command, got, want)
		}
	}
}

type step struct{ command, output string }

// transcript reads the console blocks of a Markdown text.
func transcript(text string) (steps []step) {
	inside := false
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "```"):
			inside = strings.TrimSpace(line) == "```console"
		case !inside:
		case strings.HasPrefix(line, "$ "):
			steps = append(steps, step{command: strings.TrimSpace(line[2:])})
		default:
			steps[len(steps)-1].output += line
		}
	}
	return steps
}

var (
	identifier = regexp.MustCompile(`(service|token|group|rule|decision)_[0-9A-Za-z]{27}|csu_[0-9A-Za-z]{49}|…[0-9A-Za-z]{4}`)
	instant    = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ|(?m)^Date: .*$`)
)

// learn pairs the ids that the README shows with those that were printed.
func learn(actual map[string]string, readme, printed string) {
	known, here := identifier.FindAllString(readme, -1), identifier.FindAllString(printed, -1)
	for i := range min(len(known), len(here)) {
		if _, ok := actual[known[i]]; !ok {
			actual[known[i]] = here[i]
		}
	}
}

// stable replaces what differs from run to run.
func stable(text string) string {
	return strings.TrimSpace(instant.ReplaceAllString(strings.ReplaceAll(text, "\r", ""), "<time>"))
}

// curl stands in for the program of that name: GET requests with -i and -u.
func curl() {
	var include bool
	var user, target string
	for args := os.Args[1:]; len(args) > 0; args = args[1:] {
		switch args[0] {
		case "-i":
			include = true
		case "-u":
			user, args = args[1], args[1:]
		default:
			target = args[0]
		}
	}
	if err := func() error {
		u, err := url.Parse("http://" + strings.TrimPrefix(target, "http://"))
		if err != nil {
			return err
		}
		conn, err := net.Dial("tcp", u.Host)
		if err != nil {
			return err
		}
		defer conn.Close()
		request := "GET " + u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host + "\r\nAccept: */*\r\nUser-Agent: curl/7.88.1\r\n"
		if user != "" {
			request += "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user)) + "\r\n"
		}
		if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
			return err
		}
		var raw bytes.Buffer
		resp, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &raw)), nil)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if include {
			head, _, _ := strings.Cut(raw.String(), "\r\n\r\n")
			fmt.Printf("%s\n\n", head)
		}
		fmt.Println(string(body))
		return nil
	}(); err != nil {
		fmt.Fprintln(os.Stderr, "curl:", err)
		os.Exit(1)
	}
}
