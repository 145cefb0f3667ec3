package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// issuing adds the flag --secret-file to a command that issues a secret.
func (c *cli) issuing(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.secretFile, "secret-file", "",
		"write the token to this new file, which only you can read, instead of printing it; "+
			"if no answer comes, the same command completes it")
}

// issue calls request, which issues a secret. With --secret-file it moves the secret from the
// result into the file. It creates the file before the request, so that no secret is issued that
// cannot be saved. key is the idempotency key of the request, or "".
func (c *cli) issue(request func(key string) error, secret *string) error {
	if c.secretFile == "" {
		err := request("")
		if isLost(err) {
			err = fmt.Errorf("%w; the request may have been done, and its token is lost then: look "+
				"before you repeat it. With --secret-file the same command would complete it", err)
		}
		return err
	}
	p, err := begin("--secret-file", []string{c.secretFile})
	if err != nil {
		return err
	}
	if err := request(p.key); err != nil {
		return p.failed(err)
	}
	err = saveSecret(c.secretFile, *secret)
	*secret = ""
	if err != nil {
		return fmt.Errorf("a token was issued and could not be written; revoke it: %w", err)
	}
	return nil
}

// isLost reports whether a request may have been done although its answer did not arrive.
func isLost(err error) bool {
	var op *net.OpError
	return errors.As(err, new(*admin.UnreachableError)) && !(errors.As(err, &op) && op.Op == "dial")
}

// pending is a request that issues secrets, and the files for them.
type pending struct {
	files, made []string // all of them, and those that this run has made
	key         string   // the idempotency key of the request
	begun       bool     // an earlier run has left the key
}

// keyMark begins the text of a file that has a key.
const keyMark = "Idempotency-Key: "

// keyIn returns the key in one of the files, or "".
func keyIn(files []string) string {
	for _, path := range files {
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
			text, _ := os.ReadFile(path)
			if key, found := strings.CutPrefix(string(text), keyMark); found {
				return key
			}
		}
	}
	return ""
}

// begin makes the files for the secrets of a request, in their order; flag is the one that the paths
// are from. The last file has the key of the request until its secret comes. If the answer is lost,
// the same command finds the key, and the request with that key gets the same tokens with other
// secrets. After an error no new file is left.
func begin(flag string, files []string) (p pending, err error) {
	p.files, p.key = files, keyIn(files)
	if p.begun = p.key != ""; !p.begun {
		p.key = rand.Text()
	}
	for i, path := range files {
		_, missing := os.Lstat(path)
		if p.begun && missing == nil {
			if flag == "--secret-dir" {
				continue
			}
			// Others may write into the directory, and have made the file.
			if err := os.Remove(path); err != nil {
				return p, err
			}
		}
		if err = newSecretFile(flag, path); err == nil && missing != nil {
			p.made = append(p.made, path)
		}
		if err == nil && i == len(files)-1 {
			err = saveSecret(path, keyMark+p.key)
		}
		if err != nil {
			return p, errors.Join(err, removePending(p.made))
		}
	}
	return p, nil
}

// failed removes the files of a request that failed, unless the same command can still get secrets for
// them. It returns the error for the user.
func (p *pending) failed(err error) error {
	var e *admin.Error
	status := 0
	if errors.As(err, &e) {
		status = e.Status
	}
	switch {
	case p.begun && status == http.StatusUnprocessableEntity:
		e.Msg = "an earlier run with other arguments is not complete; repeat that command, or remove its files"
		return errors.Join(err, removePending(p.made))
	case p.begun && (status == http.StatusNotFound || status == http.StatusConflict): // also in a later run
		return errors.Join(err, removePending(p.files))
	case p.begun, status >= 500, isLost(err):
		return fmt.Errorf("%w; the same command completes it", err)
	}
	return errors.Join(err, removePending(p.made))
}

// removePending removes the files that have no secret.
func removePending(files []string) (err error) {
	for _, path := range files {
		text, failed := os.ReadFile(path)
		if failed == nil && !strings.HasPrefix(string(text), access.SecretPrefix) {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
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
		err = errors.Join(err, file.Truncate(int64(len(secret))), file.Sync(), file.Close())
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
