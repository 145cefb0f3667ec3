package cli

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/store"
)

// issuing adds the flag --secret-file to a command that issues a secret.
func (c *cli) issuing(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.secretFile, "secret-file", "",
		"write the token to this new file, which only you can read, instead of printing it")
}

// issue calls request, which issues a secret. With --secret-file it moves the secret from the
// result into the file. It creates the file before the request, so that no secret is issued that
// cannot be saved.
func (c *cli) issue(request func() error, secret *string) error {
	if c.secretFile == "" {
		return request()
	}
	if err := newSecretFile("--secret-file", c.secretFile); err != nil {
		return err
	}
	if err := request(); err != nil {
		return errors.Join(err, os.Remove(c.secretFile))
	}
	err := saveSecret(c.secretFile, *secret)
	*secret = ""
	if err != nil {
		return fmt.Errorf("a token was issued and could not be written; revoke it: %w", err)
	}
	return nil
}

// newSecretFile creates an empty file for a secret, which only the user can read. It does not
// overwrite a file. The error names the flag that the path is from.
func newSecretFile(flag, path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		other := map[string]string{"--secret-file": "file", "--secret-dir": "directory"}[flag]
		return fmt.Errorf("%s: %q exists already, and is not overwritten; name another %s", flag, path, other)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", flag, store.ExplainPath(path, err))
	}
	return file.Close()
}

// saveSecret writes a secret into a file that newSecretFile has created. After an error it removes
// the file.
func saveSecret(path, secret string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = file.WriteString(secret) // without a line feed, which not every reader would remove
		err = errors.Join(err, file.Sync(), file.Close())
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// secretPath returns the path in the directory of --secret-dir for a secret of the service user with
// this name. A character of the name that could lead elsewhere, such as "/", becomes "%2F".
func secretPath(dir, name string) string {
	name = url.PathEscape(name)
	if strings.HasPrefix(name, ".") { // "..", or a file that ls does not show
		name = "%2E" + name[1:]
	}
	return filepath.Join(dir, name)
}

// checkSecretDir refuses a directory that other users can write into. They could put their own file,
// or a link, in the place of a new file, or an empty file that looks like that of an earlier rotation.
func checkSecretDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() {
		return fmt.Errorf("--secret-dir: there is no directory %q; make it first", dir)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 && runtime.GOOS != "windows" {
		return fmt.Errorf("--secret-dir: others can write into %q (mode %04o); \"chmod go-w\" it, "+
			"or name another directory", dir, mode)
	}
	return nil
}

// newSecretFiles creates files in the directory of --secret-dir. After an error it leaves none.
func newSecretFiles(dir string, paths []string) error {
	if err := checkSecretDir(dir); err != nil {
		return err
	}
	for i, path := range paths {
		if err := newSecretFile("--secret-dir", path); err != nil {
			return errors.Join(err, removeFiles(paths[:i]))
		}
	}
	return nil
}

func removeFiles(paths []string) (err error) {
	for _, path := range paths {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// secretNote returns the note after a command that issued a secret.
func (c *cli) secretNote(secret string) string {
	switch {
	case c.secretFile != "":
		return fmt.Sprintf("The token is in %q; it is not shown.", c.secretFile)
	case secret == "":
		return ""
	}
	return "Keep the token safe: it is not shown again."
}
