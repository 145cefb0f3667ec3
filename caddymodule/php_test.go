package caddymodule

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// startPHP runs php-fpm behind the server, and returns the root of its scripts.
func startPHP(t *testing.T, s *server) (root string) {
	t.Helper()
	found, _ := filepath.Glob("/usr/sbin/php-fpm*")
	if len(found) == 0 {
		testkit.Missing(t, "install the Debian package php-fpm to run this: there is no /usr/sbin/php-fpm*")
	}
	dir := t.TempDir()
	root = filepath.Join(dir, "root")
	for _, path := range []string{"index.php", "tool.php", "app/index.php"} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, must(os.ReadFile("testdata/php/index.php")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	addr := "127.0.0.1:" + s.ports["UPSTREAM_PORT"]
	conf := filepath.Join(dir, "fpm.conf")
	text := "[global]\nerror_log = /dev/stderr\n[www]\nlisten = " + addr + "\npm = static\npm.max_children = 1\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(found[0], "--nodaemonize", "--no-php-ini", "--allow-to-run-as-root", "--fpm-config", conf)
	if os.Geteuid() != 0 {
		cmd.Args = append(cmd.Args[:3], cmd.Args[4:]...)
	}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("php-fpm: %v\n%s", err, &log)
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return root
		}
		if time.Now().After(deadline) {
			t.Fatal("php-fpm does not listen")
		}
	}
}

// phpSites are sites with a guard in front of the same PHP, one for each way in
// which the path can be another one when the guard sees it. PHP stands for the
// directive php_fastcgi.
const phpSites = `
http://own.example:{$API_PORT} {
	service_users {
		public GET /open/{rest...}
	}
	PHP
}

http://try-files.example:{$API_PORT} {
	try_files {path} /index.php
	service_users {
		public GET /open/{rest...}
		public GET /index.php
	}
	PHP
}

http://rewrite.example:{$API_PORT} {
	rewrite * /index.php
	service_users
	PHP
}

http://strip.example:{$API_PORT} {
	uri strip_prefix /admin
	service_users
	PHP
}

http://replace.example:{$API_PORT} {
	uri replace /admin /app
	service_users
	PHP
}

http://regexp.example:{$API_PORT} {
	uri path_regexp ^/admin/.*$ /index.php
	service_users
	PHP
}

http://handle-path.example:{$API_PORT} {
	handle_path /admin/* {
		service_users
		PHP
	}
}

http://method.example:{$API_PORT} {
	method GET
	service_users
	PHP
}

&(php) {
	service_users
	PHP
}

http://named.example:{$API_PORT} {
	rewrite * /index.php
	invoke php
}

http://merged.example:{$API_PORT} {
	service_users {
		merge_slashes
	}
	PHP
}

http://split.example:{$API_PORT} {
	service_users {
		allow_encoded_slash
		allow_trailing_dot
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT} {
		transport fastcgi {
			split .php
		}
	}
}

# php-fpm divides the path itself.
http://fix-pathinfo.example:{$API_PORT} {
	service_users
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT} {
		transport fastcgi {
			split .html
		}
	}
}

# PATH_INFO comes from a matcher in front of the guard.
http://remainder.example:{$API_PORT} {
	route {
		uri replace /go /index.php/admin
		@script file {
			try_files {path}
			split_path .php
		}
		rewrite @script {file_match.relative}
		service_users
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT} {
			transport fastcgi {
				split .php
			}
		}
	}
}
`

// TestPHP asks a PHP program that routes by REQUEST_URI, by PATH_INFO and by
// SCRIPT_NAME, behind every kind of rewrite. Nothing that is denied gets to it.
func TestPHP(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	root := startPHP(t, s)
	s.env = append(s.env, "PHP_ROOT="+root)
	sites := strings.ReplaceAll(phpSites, "PHP\n", "php_fastcgi 127.0.0.1:{$UPSTREAM_PORT}\n")
	sites = strings.ReplaceAll(sites, ":{$API_PORT} {\n", ":{$API_PORT} {\n\tbind 127.0.0.1\n\troot * {$PHP_ROOT}\n")
	withCaddyfile(s, "{\n\tservice_users {\n\t\tstore {$SERVICE_USERS_STORE}\n\t}\n}\n"+sites)
	// What is allowed is named by public URLs, and is everything; "clerk" may only
	// read people.
	s.mustCLI("group", "create", "everything", "--rule", "allow * /{rest...}", "--rule", "deny * /admin/{rest...}", "--rule", "deny DELETE /v1/{rest...}", "--rule", "deny * /tool.php")
	s.mustCLI("group", "create", "people", "--rule", "allow GET /v1/people", "--rule", "allow GET /index.php")
	s.mustCLI("group", "create", "deep", "--rule", "allow GET /index.php/{rest...}", "--rule", "allow GET /v1/people")
	all, clerk := s.create("all", "--group", "everything"), s.create("clerk", "--group", "people")
	deep, wide := s.create("deep", "--group", "deep"), s.create("wide", "--group", "deep", "--group", "people")

	for _, tt := range []struct {
		who    credentials
		method string
		url    string // host, without ".example", and target
		status int
		routed string // the paths that PHP had to choose from: REQUEST_URI, PATH_INFO, SCRIPT_NAME
	}{
		// Rules name the public URL. The rewrite of php_fastcgi needs no rule.
		{clerk, "GET", "own/v1/people", 200, "/v1/people  /index.php"},
		{clerk, "GET", "own/v1/people?x=/admin", 200, "/v1/people  /index.php"},
		{clerk, "GET", "own/v1/other", 403, ""},
		{clerk, "POST", "own/v1/people", 403, ""},
		{all, "GET", "own/admin/users", 403, ""},
		{all, "GET", "own/Admin/users", 403, ""},
		{credentials{}, "GET", "own/v1/people", 401, ""},
		{credentials{}, "GET", "own/open/x", 200, "/open/x  /index.php"},
		{credentials{}, "GET", "own/open/x.php/y", 401, ""},

		// A rewrite in front of the guard: a rule for what it makes is needed as well.
		{clerk, "GET", "try-files/v1/people", 200, "/v1/people  /index.php"},
		{clerk, "GET", "try-files/v1/other", 403, ""},
		{all, "GET", "try-files/admin/users", 403, ""},
		{all, "GET", "try-files/adm%69n/users", 403, ""},
		{all, "DELETE", "try-files/v1/people", 403, ""},
		{all, "PUT", "try-files/v1/people", 200, "/v1/people  /index.php"},
		{credentials{}, "GET", "try-files/open/x", 200, "/open/x  /index.php"},
		{credentials{}, "GET", "try-files/v1/people", 401, ""},
		{clerk, "GET", "rewrite/v1/people", 200, "/v1/people  /index.php"},
		{all, "GET", "rewrite/admin/users", 403, ""},
		{all, "GET", "strip/admin/index.php", 403, ""},
		{all, "GET", "strip/index.php", 200, "/index.php  /index.php"},
		{all, "GET", "replace/admin/x", 403, ""},
		{all, "GET", "replace/app/index.php", 200, "/app/index.php  /app/index.php"},
		{all, "GET", "regexp/admin/x", 403, ""},
		{all, "GET", "handle-path/admin/index.php", 403, ""},
		{all, "GET", "named/admin/users", 403, ""},
		{clerk, "GET", "named/v1/people", 200, "/v1/people  /index.php"},
		{all, "DELETE", "method/v1/people", 403, ""},
		{all, "POST", "method/v1/people", 200, "/v1/people  /index.php"},

		// Script and PATH_INFO are paths of their own.
		{clerk, "GET", "own/index.php/v1/people", 403, ""}, // no rule for the whole
		{all, "GET", "own/index.php/v1/people", 200, "/index.php/v1/people /v1/people /index.php"},
		{deep, "GET", "own/index.php/v1/people", 403, ""}, // none for the script
		{wide, "GET", "own/index.php/v1/people", 200, "/index.php/v1/people /v1/people /index.php"},
		{wide, "GET", "own/index.php/v1/other", 403, ""}, // none for PATH_INFO
		{all, "GET", "own/index.php/admin/users", 403, ""},
		{all, "GET", "own/index.php/admin", 403, ""},
		{all, "GET", "own/INDEX.PHP/admin/users", 403, ""},
		{all, "DELETE", "own/index.php/v1/people", 403, ""},
		{all, "GET", "own/tool.php", 403, ""},
		{all, "GET", "own/tool.php/x", 403, ""}, // SCRIPT_NAME
		{all, "GET", "split/index.php/v1/people", 200, "/index.php/v1/people /v1/people /index.php"},
		{all, "GET", "split/index.php/admin/users", 403, ""},
		{all, "GET", "split/index.php/admin%2Fusers", 403, ""},
		{all, "GET", "split/index.php%2Fadmin/users", 403, ""},
		{all, "GET", "split/index.phpadmin/users", 403, ""},
		{all, "GET", "split/index.php../admin/users", 400, ""},
		{all, "GET", "split/index.php%20/admin", 400, ""},
		{all, "GET", "split/tool.php/x", 403, ""},
		{all, "GET", "fix-pathinfo/index.php/v1/people", 200, "/index.php/v1/people  /index.php/v1/people"}, // runs index.php
		{all, "GET", "fix-pathinfo/index.php/admin/users", 403, ""},
		{all, "GET", "fix-pathinfo/tool.php/x", 403, ""},
		{all, "GET", "try-files/index.php/admin/users", 403, ""},
		{all, "GET", "remainder/go/users", 403, ""},
		{all, "GET", "remainder/index.php/v1/people", 200, "/index.php/v1/people /v1/people /index.php"},

		// merge_slashes: PHP sees the merged path too, where "//x" would be a host.
		{all, "GET", "merged//x//admin/users", 200, "/x/admin/users  /index.php"},
		{all, "GET", "merged//admin//users", 403, ""},
		{all, "GET", "own//x/admin/users", 400, ""},
	} {
		host, target, _ := strings.Cut(tt.url, "/")
		status, body := s.askPHP(tt.method, host+".example", "/"+target, tt.who)
		var routed []string
		if status == 200 {
			if err := json.Unmarshal([]byte(body), &routed); err != nil {
				t.Errorf("%s %s: %v in %q", tt.method, tt.url, err, body)
			}
		}
		if got := strings.Join(routed, " "); status != tt.status || got != tt.routed {
			t.Errorf("%s %s: got %d, %q; want %d, %q", tt.method, tt.url, status, got, tt.status, tt.routed)
		}
	}
}

// askPHP sends a target as it is, and returns status and body of the answer.
func (s *server) askPHP(method, host, target string, who credentials) (status int, body string) {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.addr("API_PORT"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	request := method + " " + target + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n"
	if who.id != "" {
		request += "Authorization: " + basic(who.id, who.secret) + "\r\n"
	}
	if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}
