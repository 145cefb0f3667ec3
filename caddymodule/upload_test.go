package caddymodule

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

const uploadsCaddyfile = `
{
	service_users {
		store {$SERVICE_USERS_STORE}
		throttle off
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users {
		self /self
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}

http://:{$ERRORS_PORT} {
	bind 127.0.0.1
	service_users {
		errors caddy
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	handle_errors {
		respond "error {err.status_code}"
	}
}

http://:{$ADMIN_PORT} {
	bind 127.0.0.1
	service_users_admin
}
`

// goUpload is the upload client in Go.
func goUpload(url string, size int, login string, tries int) (out string) {
	for range tries {
		r, err := http.NewRequest("POST", url, bytes.NewReader(make([]byte, size)))
		if err != nil {
			return err.Error()
		}
		if id, secret, ok := strings.Cut(login, ":"); ok {
			r.SetBasicAuth(id, secret)
		}
		resp, err := new(http.Transport).RoundTrip(r)
		if err != nil {
			out += err.Error() + "\n"
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		out += strconv.Itoa(resp.StatusCode) + "\n"
	}
	return out
}

// TestRefusedUploads uploads more than the buffers of a connection hold with the
// clients of several languages: each of them reads the refusal.
func TestRefusedUploads(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.moreports("ERRORS_PORT")
	startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, uploadsCaddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	own := user.id + ":" + user.secret
	classes := t.TempDir()
	for name, client := range map[string][]string{
		"go": nil, "fetch": {"node", "testdata/upload/fetch.mjs"}, "node": {"node", "testdata/upload/http.mjs"},
		"python": {"python3", "testdata/upload/upload.py"}, "java": {"java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", classes, "Upload"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if client != nil {
				if _, err := exec.LookPath(client[0]); err != nil {
					t.Skipf("install %s to run this: %v", client[0], err)
				}
			}
			if name == "java" {
				if out, err := exec.Command("javac", "-d", classes, "testdata/upload/Upload.java").CombinedOutput(); err != nil {
					t.Skipf("install a JDK to run this: javac: %v: %s", err, out)
				}
			}
			for _, tt := range []struct {
				port, path, login string
				mib, want         int
			}{
				{"API_PORT", "/v1/x", "", 4, 401},
				{"API_PORT", "/v1/x", user.id + ":wrong", 4, 401},
				{"API_PORT", "/v2/x", own, 4, 403},
				{"API_PORT", "/v1//x", own, 4, 400},
				{"API_PORT", "/self", "", 4, 401},
				{"API_PORT", "/self", own, 4, 405},
				{"API_PORT", "/self/can", own, 4, 413},
				{"ADMIN_PORT", "/service_users", "", 4, 401},
				{"ADMIN_PORT", "/service_users", own, 4, 403},
				{"API_PORT", "/v2/x", own, 20, 403},
				{"ERRORS_PORT", "/v1/x", "", 4, 401},
			} {
				if name == "python" && tt.port == "ERRORS_PORT" {
					continue // it reads after it has sent everything, and the server reads 256 KiB, as for basic_auth
				}
				url, tries := "http://"+s.addr(tt.port)+tt.path, 3
				var out string
				if client == nil {
					out = goUpload(url, tt.mib<<20, tt.login, tries)
				} else {
					text, err := exec.Command(client[0], append(client[1:], url, strconv.Itoa(tt.mib<<20), tt.login, strconv.Itoa(tries))...).CombinedOutput()
					if out = string(text); err != nil {
						out += err.Error()
					}
				}
				if want := strings.Repeat(fmt.Sprintln(tt.want), tries); out != want {
					t.Errorf("%d MiB to %s%s as %.8q: got %q, want %q", tt.mib, tt.port, tt.path, tt.login, out, want)
				}
			}
		})
	}
}

// TestRefusedUploadsAreBounded withholds the rest of a body after the refusal: the
// connection is closed all the same, and at once for a caller that is throttled.
func TestRefusedUploadsAreBounded(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	withCaddyfile(s, strings.Replace(guarded("\t\tthrottle 1 1m", "realm off", ""), "reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}", "respond ok", 1))
	for _, want := range []int{401, 401, 429} {
		conn, err := net.Dial("tcp", s.addr("API_PORT"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conn, "POST /v1/x HTTP/1.1\r\nHost: app.example\r\nAuthorization: "+basic("service_x", "wrong")+"\r\nContent-Length: 1000000\r\n\r\nabc"); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != want && resp.StatusCode != 429 {
			t.Errorf("got %d, want %d", resp.StatusCode, want)
		}
		begin := time.Now()
		if _, err := io.Copy(io.Discard, in); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%d: the connection stays open", resp.StatusCode)
		}
		if took := time.Since(begin); resp.StatusCode == 429 && took >= lingerIdle || resp.StatusCode == 401 && took < lingerIdle/2 {
			t.Errorf("%d: closed after %s", resp.StatusCode, took)
		}
		conn.Close()
	}
}
