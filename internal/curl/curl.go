// Package curl replaces the program of that name in the transcripts that tests run.
package curl

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
	"strings"
)

// Main is the program. It supports requests without a body, and the options -s, -i, -u, -H, -X, and
// -K with a file that contains only a user.
func Main() {
	var include bool
	var user, target, fields string
	method := http.MethodGet
	for args := os.Args[1:]; len(args) > 0; args = args[1:] {
		switch args[0] {
		case "-s":
		case "-i":
			include = true
		case "-u":
			user, args = args[1], args[1:]
		case "-K":
			text, err := os.ReadFile(args[1])
			if info, statErr := os.Stat(args[1]); err != nil || statErr != nil || info.Mode().Perm() != 0o600 {
				fmt.Fprintln(os.Stderr, "curl: the file is not there, or not private:", args[1])
				os.Exit(1)
			}
			user, args = strings.TrimPrefix(strings.TrimSpace(string(text)), "user = "), args[1:]
		case "-H":
			fields, args = fields+args[1]+"\r\n", args[1:]
		case "-X":
			method, args = args[1], args[1:]
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
		request := method + " " + u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host + "\r\nAccept: */*\r\nUser-Agent: curl/7.88.1\r\n" + fields
		if user != "" {
			request += "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user)) + "\r\n"
		}
		if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
			return err
		}
		var raw bytes.Buffer
		resp, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &raw)), &http.Request{Method: method})
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
