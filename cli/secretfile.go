package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
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
	file, err := os.OpenFile(c.secretFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("--secret-file: %q exists already, and is not overwritten; name another file",
			c.secretFile)
	}
	if err != nil {
		return fmt.Errorf("--secret-file: %w", err)
	}
	if err := request(); err != nil {
		return errors.Join(err, file.Close(), os.Remove(c.secretFile))
	}
	_, err = file.WriteString(*secret) // without a line feed, which not every reader would remove
	*secret = ""
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("a token was issued and could not be written; revoke it: %w",
			errors.Join(err, os.Remove(c.secretFile)))
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
