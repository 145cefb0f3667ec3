package caddymodule

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/serviceusers/caddy-service-users/admin"
)

// destructive gives a command the flag --yes. It makes the command refuse before
// it has done anything when there is nobody to ask; the question itself is
// [cli.sure]. when says whether there will be one; nil is always.
func (c *cli) destructive(cmd *cobra.Command, when func() bool) {
	cmd.Flags().BoolVar(&c.yes, "yes", false, "do not ask whether you are sure")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if when == nil || when() {
			if err := c.canAsk(); err != nil {
				return c.exit(cmd, exitUsage, err)
			}
		}
		return run(cmd, args)
	}
}

// canAsk refuses to go on without a terminal that a question can be put to.
func (c *cli) canAsk() error {
	if c.yes || term.IsTerminal(int(os.Stdin.Fd())) {
		return nil
	}
	return usageError{errors.New("this asks first whether you are sure, and the standard input is no terminal; add --yes")}
}

var errNotSure = errors.New("not done: nothing was changed")

// sure asks a question and fails unless the answer is yes.
func (c *cli) sure(format string, args ...any) error {
	if c.yes {
		return nil
	}
	if err := c.canAsk(); err != nil {
		return err
	}
	fmt.Fprintf(c.stderr, "%s [y/N] ", cell(fmt.Sprintf(format, args...)))
	answer, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil { // the end, which is an answer too
		fmt.Fprintln(c.stderr)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errNotSure
}

// lastActive says when a service user was in use, as far as that is known.
func lastActive(u admin.ServiceUser) string {
	if u.LastActiveAt == nil {
		return ""
	}
	return " It was last in use " + when(u.LastActiveAt) + "."
}
