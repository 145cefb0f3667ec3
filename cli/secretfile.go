package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// issuing gives a command that issues a secret the flag --secret-file.
func (c *cli) issuing(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.secretFile, "secret-file", "", "write the token to this new file, which only you can read, instead of printing it")
}

// issue has a secret issued. With --secret-file it goes into the file and not into
// the result. The file is made first: a secret that cannot be kept is not issued.
func (c *cli) issue(request func() error, secret *string) error {
	if c.secretFile == "" {
		return request()
	}
	file, err := os.OpenFile(c.secretFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("--secret-file: %q exists already, and is not overwritten; name another file", c.secretFile)
	}
	if err != nil {
		return fmt.Errorf("--secret-file: %w", err)
	}
	if err := request(); err != nil {
		return errors.Join(err, file.Close(), os.Remove(c.secretFile))
	}
	_, err = file.WriteString(*secret) // alone, since not every reader takes off a line feed
	*secret = ""
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("a token was issued and could not be written; revoke it: %w", errors.Join(err, os.Remove(c.secretFile)))
	}
	return nil
}

// secretNote tells where the secret is.
func (c *cli) secretNote(secret string) string {
	switch {
	case c.secretFile != "":
		return fmt.Sprintf("The token is in %q; it is not shown.", c.secretFile)
	case secret == "":
		return ""
	}
	return "Keep the token safe: it is not shown again."
}
