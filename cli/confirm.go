package cli

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/serviceusers/caddy-service-users/admin"
)

// destructive adds the flag --yes to a command that asks a question by [cli.sure]. Where nobody can
// answer, the command fails before it does anything. when reports whether the command will ask; nil
// means always.
func (c *cli) destructive(cmd *cobra.Command, when func() bool) {
	cmd.Flags().BoolVar(&c.yes, "yes", false, "do not ask whether you are sure")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if when == nil || when() {
			if err := c.canAsk(); err != nil {
				return c.exit(cmd, err)
			}
		}
		return run(cmd, args)
	}
}

// canAsk fails if the standard input is not a terminal, where a person could answer a question.
func (c *cli) canAsk() error {
	if c.yes || term.IsTerminal(int(os.Stdin.Fd())) {
		return nil
	}
	return usagef("this command asks whether you are sure, and the standard input is not a terminal; add --yes")
}

var errNotSure = errors.New("not done: nothing was changed")

// sure asks a question and fails unless the answer is yes.
func (c *cli) sure(format string, args ...any) error {
	if c.yes {
		return nil
	}
	if err := c.canAsk(); err != nil { // for permission load, whose file decides whether it asks
		return err
	}
	fmt.Fprintf(c.stderr, "%s [y/N] ", cell(fmt.Sprintf(format, args...)))
	answer, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil { // the end of the input, which is an answer, too
		fmt.Fprintln(c.stderr)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errNotSure
}

// lastUse returns a sentence about the last use of tokens.
func lastUse(tokens []admin.Token) string {
	var last time.Time
	seen := make(map[string]time.Time) // by address
	for _, t := range tokens {
		if t.LastUsedAt != nil && t.LastUsedAt.After(last) {
			last = *t.LastUsedAt
		}
		for _, from := range t.UsedFrom {
			if at, ok := seen[from.Address]; !ok || at.Before(from.LastUsedAt) {
				seen[from.Address] = from.LastUsedAt
			}
		}
	}
	if last.IsZero() {
		return "It was never used."
	}
	text := "It was last used " + when(&last)
	addresses := slices.SortedFunc(maps.Keys(seen), func(a, b string) int {
		return cmp.Or(seen[b].Compare(seen[a]), cmp.Compare(a, b))
	})
	if more := len(addresses) - 3; more > 0 {
		addresses = append(addresses[:3], fmt.Sprintf("%d more", more))
	}
	if len(addresses) > 0 {
		text += ", lately from " + strings.Join(addresses, ", ")
	}
	return text + "."
}
