package caddymodule

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// TestHandbook runs every line of docs/handbook.md. The lines of the CLI lead one service user to the state
// to which those of curl lead another one.
func TestHandbook(t *testing.T) {
	t.Parallel()
	path := ownPATH(t)
	curl := lookPath("curl", path)
	if curl == "" {
		testkit.Missing(t, "install the Debian package curl to run this")
	}
	s := startServer(t, exampleCaddyfile(t))
	if err := os.Symlink(must(exec.LookPath(caddyBinary())), filepath.Join(s.dir, "caddy")); err != nil {
		t.Fatal(err)
	}
	script := strings.NewReplacer(
		"export CADDY_ADMIN=unix/caddy.sock\n", "", "API=http://localhost\n", "API=http://"+s.addr("CADDY_PORT")+"\n",
		"'unix-socket = caddy.sock' ", "", "curl -K", curl+" -K",
	).Replace(strings.Join(pageBlocks(t, "handbook.md", "sh"), ""))
	cmd := exec.Command("sh", "-eux", "-c", script)
	cmd.Dir, cmd.Env = s.dir, append(s.env, "no_proxy=*")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	states := make(map[string]string)
	for _, name := range []string{"billing-sync", "reports-sync"} {
		var user struct {
			Active           bool
			Owner            string
			Teams            []string
			PermissionGroups []string `json:"permission_groups"`
		}
		if err := json.Unmarshal([]byte(s.mustCLI("show", name, "--json")), &user); err != nil {
			t.Fatal(err)
		}
		tokens := s.mustCLI("token", "list", name)
		if user.Active || len(user.PermissionGroups) != 1 || strings.Count(tokens, "revoked") != 1 || strings.Count(tokens, "  active ") != 1 {
			t.Errorf("%s is %+v, with the tokens\n%s", name, user, tokens)
		}
		states[name] = string(must(json.Marshal(user)))
	}
	if states["billing-sync"] != states["reports-sync"] {
		t.Errorf("the commands lead to %s, curl to %s", states["billing-sync"], states["reports-sync"])
	}
}
