package caddymodule

import (
	"os"
	"path/filepath"
	"testing"
)

// A directory that is made for the default store can only be read by its owner.
func TestDefaultDirectory(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	startServer(t, "{\n\tadmin {$CADDY_ADMIN}\n\tservice_users\n}\n", "XDG_DATA_HOME="+data)
	info, err := os.Stat(filepath.Join(data, "caddy"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(data, "caddy", "service_users.db")); err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("mode: got %v, want 0700", got)
	}
}
