package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/store"
)

// olderStore is what a store has come to be, beside what it was before.
type olderStore struct {
	Store        string     `json:"store"`
	Revision     int64      `json:"revision"`
	LastChangeAt time.Time  `json:"last_change_at"`
	SeenRevision int64      `json:"seen_revision"`
	SeenAt       *time.Time `json:"seen_at"` // null: nothing was noted
	Lost         int64      `json:"lost"`    // changes
}

// olderCommand adds what lets a store start that was restored on purpose.
func (c *cli) olderCommand(root *cobra.Command) {
	cmd := c.command(root, "accept-older", "Accepts a store that is older than it was before",
		"caddy service-user accept-older --store service_users.db --yes", 0, nil)
	cmd.Long = `Accepts a store that is older than it was before: a backup that was restored on
purpose. A store notes in a file beside it, PATH.seen, how far it has come, and does
not start with less: tokens that were revoked since would work again. What would be
lost is shown first. The clock is set to what it is now, too; it never goes back by
itself, so that what has expired stays so. No Caddy must run on the store.`
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := c.acceptOlder(context.Background())
		return c.exit(cmd, exitCode(err), err)
	}
	c.destructive(cmd, nil)
}

func (c *cli) acceptOlder(ctx context.Context) error {
	if c.store == "" || c.url != "" || c.address != "" {
		return usageError{errors.New("name the store file with --store, and no running Caddy")}
	}
	path, err := filepath.Abs(c.store)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return fmt.Errorf("--store: %w", err)
	}
	held, err := store.Holds(ctx, path)
	if err != nil {
		return fmt.Errorf("--store %q: %w", c.store, err)
	}
	seen, err := store.Seen(path)
	if err != nil {
		fmt.Fprintln(c.stderr, cell(err.Error()))
	}
	facts := olderStore{Store: path, Revision: held.Revision, LastChangeAt: held.Clock}
	if seen.Instance != "" {
		facts.SeenRevision, facts.SeenAt = seen.Revision, &seen.Clock
	}
	if seen.Instance == held.Instance {
		facts.Lost = max(seen.Revision-held.Revision, 0)
	}
	err = c.print(facts, func(w io.Writer) {
		fmt.Fprintf(w, "store\t%s\nholds\trevision %d\nlast change\t%s\n", cell(path), held.Revision, when(&held.Clock))
		if facts.SeenAt != nil {
			fmt.Fprintf(w, "before\trevision %d\nseen\t%s\nlost\t%d changes\n", seen.Revision, when(facts.SeenAt), facts.Lost)
		}
		if seen.Instance != "" && seen.Instance != held.Instance {
			fmt.Fprintf(w, "another store\t%s, before %s\n", cell(held.Instance), cell(seen.Instance))
		}
	})
	if err != nil {
		return err
	}
	if err := c.sure("Take the store as it is now? Tokens that were revoked since its last change would work again."); err != nil {
		return err
	}
	if err := store.AcceptOlder(ctx, path, time.Now()); err != nil {
		return err
	}
	return c.done("accepted revision %d", held.Revision)
}
