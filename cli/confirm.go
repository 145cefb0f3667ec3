package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

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

// useOf says, for the question whether tokens shall end, when one of them was used
// last and from where: uri is of one, or of the list of a service user.
func (c *cli) useOf(ctx context.Context, client *admin.Client, uri string) (string, error) {
	if c.yes {
		return "", nil
	}
	var list admin.TokenList
	if strings.HasSuffix(uri, "/tokens") {
		err := admin.All(ctx, client, uri, func(l admin.TokenList) admin.Page {
			list.Tokens = append(list.Tokens, l.Tokens...)
			return l.Page
		})
		if err != nil {
			return "", err
		}
	} else {
		list.Tokens = make([]admin.Token, 1)
		if err := client.Do(ctx, http.MethodGet, uri, nil, &list.Tokens[0]); err != nil {
			return "", err
		}
	}
	return lastUse(list.Tokens), nil
}

// lastUse is a sentence about the last use of tokens.
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
	addresses := slices.SortedFunc(maps.Keys(seen), func(a, b string) int { return cmp.Or(seen[b].Compare(seen[a]), cmp.Compare(a, b)) })
	if more := len(addresses) - 3; more > 0 {
		addresses = append(addresses[:3], fmt.Sprintf("%d more", more))
	}
	if len(addresses) > 0 {
		text += ", lately from " + strings.Join(addresses, ", ")
	}
	return text + "."
}
