// Tests of examples/docker, examples/kubernetes and examples/systemd. Docker and Kubernetes are not needed: the files are
// decoded strictly, by the libraries of these programs, and compared with each other and with the Caddyfile beside them.
// The command of the container runs, without Docker, as the user and with the file systems that the files give it.
package packages

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// examples is the directory of the examples.
const examples = "../../examples"

// site is what the files beside a Caddyfile have to agree with.
type site struct {
	ports  []string // that Caddy listens on
	socket string   // the file of the admin endpoint
	store  string
	probes map[string]bool // the paths that the site at port 8085 answers
	ending time.Duration   // the time that the end of the process takes at most
}

// binary returns the path of a caddy with this plugin.
func binary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("SERVICE_USERS_TEST_CADDY")
	if path == "" {
		need(t, "SERVICE_USERS_TEST_CADDY is not set: build one with ./xcaddy.sh build, and set it to $PWD/caddy")
	}
	return path
}

// need skips a test that lacks something, or with CI=true fails it.
func need(t *testing.T, missing string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(missing)
	}
	t.Skip(missing)
}

// secrets is the directory of the secrets in a container of Docker Compose.
const secrets = "/run/secrets/"

// readSite validates a Caddyfile in the environment of its container, with a password in the place of each secret, and reads it.
func readSite(t *testing.T, file string, env map[string]string) site {
	t.Helper()
	cmd := exec.Command(binary(t), "adapt", "--validate", "--adapter", "caddyfile", "--config", file)
	dir := t.TempDir() + "/"
	cmd.Env = append(os.Environ(), "HOME="+dir)
	for name, value := range env {
		if _, secret, ok := strings.Cut(value, "{file."+secrets); ok {
			secret, _, _ = strings.Cut(secret, "}")
			if err := os.WriteFile(dir+secret, []byte("password\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cmd.Env = append(cmd.Env, name+"="+strings.ReplaceAll(value, secrets, dir))
	}
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", file, err, err.(*exec.ExitError).Stderr)
	}
	type route struct {
		Match []struct {
			Path []string `json:"path"`
		} `json:"match"`
	}
	var config struct {
		Admin struct {
			Listen string `json:"listen"`
		} `json:"admin"`
		Apps struct {
			HTTP struct {
				GracePeriod   int64 `json:"grace_period"`
				ShutdownDelay int64 `json:"shutdown_delay"`
				Servers       map[string]struct {
					Listen []string `json:"listen"`
					Routes []route  `json:"routes"`
				} `json:"servers"`
			} `json:"http"`
			ServiceUsers struct {
				Store string `json:"store"`
			} `json:"service_users"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	http := config.Apps.HTTP
	s := site{store: strings.ReplaceAll(config.Apps.ServiceUsers.Store, dir, secrets), probes: map[string]bool{},
		ending: time.Duration(http.GracePeriod + http.ShutdownDelay)}
	address, mode, _ := strings.Cut(config.Admin.Listen, "|")
	if s.socket = strings.TrimPrefix(address, "unix/"); !filepath.IsAbs(s.socket) || mode != "0600" {
		t.Errorf("%s: got admin endpoint %q, want a socket that only the user of Caddy may open", file, config.Admin.Listen)
	}
	if http.GracePeriod == 0 || http.ShutdownDelay == 0 {
		t.Errorf("%s: has no grace_period or no shutdown_delay", file)
	}
	for _, server := range http.Servers {
		for _, address := range server.Listen {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				t.Fatal(err)
			}
			s.ports = append(s.ports, port)
			for _, r := range server.Routes {
				for _, m := range r.Match {
					for _, path := range m.Path {
						s.probes[port+path] = true
					}
				}
			}
		}
	}
	return s
}

// inDirectory reports whether a file is in a directory or below it.
func inDirectory(file, directory string) bool {
	return strings.HasPrefix(file, strings.TrimSuffix(directory, "/")+"/")
}

// in reports whether a list contains all of these values.
func in[T comparable](list []T, values ...T) bool {
	return !slices.ContainsFunc(values, func(v T) bool { return !slices.Contains(list, v) })
}
