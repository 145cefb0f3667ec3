package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// exposure is the highest exposure of the unit that systemd-analyze may see, times ten.
const exposure = "20"

// TestSystemd: systemd accepts the unit, finds it protected, and its paths and times are those of the Caddyfile. The unit
// itself is not started: that needs systemd as the first process.
func TestSystemd(t *testing.T) {
	text := string(read(t, examples+"/systemd/caddy.service"))
	conf := readSite(t, examples+"/systemd/Caddyfile", nil)
	setting := func(name string) string {
		found := regexp.MustCompile(`(?m)^` + name + `=(.*)$`).FindStringSubmatch(text)
		if found == nil {
			t.Fatalf("the unit has no %s", name)
		}
		return found[1]
	}
	if !inDirectory(conf.store, "/var/lib/"+setting("StateDirectory")) || !inDirectory(conf.socket, "/run/"+setting("RuntimeDirectory")) {
		t.Errorf("got store %s and socket %s outside of the directories of the unit", conf.store, conf.socket)
	}
	if !strings.Contains(text, "\nEnvironment=CADDY_ADMIN=unix/"+conf.socket+"\n") {
		t.Errorf("CADDY_ADMIN is not %s", conf.socket)
	}
	if end, err := time.ParseDuration(setting("TimeoutStopSec")); err != nil || conf.ending >= end {
		t.Errorf("the end takes up to %v, and is cut after %v (%v)", conf.ending, end, err)
	}
	for _, name := range []string{"ExecStart", "ExecReload"} {
		if !strings.Contains(setting(name), " --config /etc/caddy/Caddyfile --adapter caddyfile") {
			t.Errorf("got %s=%s", name, setting(name))
		}
	}

	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		need(t, "systemd-analyze is missing: install the Debian package systemd")
	}
	// verify wants a program that exists.
	unit := filepath.Join(t.TempDir(), "caddy.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(text, "=/usr/local/bin/caddy ", "=/bin/true ")), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"verify", "--man=no", unit}, {"security", "--offline=true", "--no-pager", "--threshold=" + exposure, unit}} {
		output, err := exec.Command("systemd-analyze", args...).CombinedOutput()
		if err != nil || args[0] == "verify" && len(output) > 0 {
			t.Errorf("systemd-analyze %s: %v\n%s", args[0], err, output)
		}
	}
}
