package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/admin"
)

// A token that cannot be written keeps no other from its file, and the error names it.
func TestSaveSecrets(t *testing.T) {
	dir := t.TempDir()
	names := []string{"a", "../b", "c"}
	var files []string
	var made []admin.BulkEntry
	for _, name := range names {
		files = append(files, secretPath(dir, name))
		made = append(made, admin.BulkEntry{Name: name, TokenID: "token_of_" + name, Token: "secret of " + name})
	}
	if _, err := begin("--secret-dir", files); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(files[1]); err != nil {
		t.Fatal(err)
	}
	err := new(cli).saveSecrets(made, files)
	const want = "all service users were created, but 1 of 3 tokens could not be written: "
	if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "for: ../b token_of_../b") {
		t.Errorf("got %v, want %s… for ../b", err, want)
	}
	for i, name := range names {
		if text, _ := os.ReadFile(files[i]); i != 1 && string(text) != "secret of "+name {
			t.Errorf("%s: got %q, want its secret", files[i], text)
		}
		if filepath.Dir(files[i]) != dir || made[i].Token != "" {
			t.Errorf("%s: got the file %s and the token %q in the result", name, files[i], made[i].Token)
		}
	}
	// A file that exists leaves no new one behind.
	if _, err := begin("--secret-dir", []string{filepath.Join(dir, "new"), files[0]}); err == nil {
		t.Error("a file that exists: got no error")
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("got a file of the failed call")
	}
}
