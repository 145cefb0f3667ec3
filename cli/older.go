package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/store"
)

// olderStore describes a store, and the last state that Caddy has seen of it.
type olderStore struct {
	Store        string     `json:"store"`
	Revision     int64      `json:"revision"`
	LastChangeAt time.Time  `json:"last_change_at"`
	SeenRevision int64      `json:"seen_revision"`
	SeenAt       *time.Time `json:"seen_at"` // null: nothing was noted
	Lost         int64      `json:"lost"`    // changes
}

// olderCommand adds "accept-older", after which Caddy starts with an older copy of a store.
func (c *cli) olderCommand(root *cobra.Command) {
	cmd := c.localCommand(root, "accept-older", "Accepts a store that is older than it was before",
		"accept-older --store service_users.db --yes",
		func([]string) error { return c.acceptOlder(context.Background()) })
	cmd.Long = `Accepts a store that is older than it was before, such as a backup that was copied
into its place on purpose. Caddy notes the last revision of a store in a file beside
it, PATH.seen, and does not start with an older one, where tokens that were revoked
since then would work again. The command shows the changes that would be lost, and
asks. It also sets the latest time in PATH.seen to the present: Caddy never sets it
back by itself, so that expired tokens stay expired. Stop Caddy first.`
	c.destructive(cmd, nil)
}

func (c *cli) acceptOlder(ctx context.Context) error {
	if c.store == "" || c.url != "" || c.address != "" || store.IsURL(c.store) {
		return usagef("accept-older works on a store file: name it with --store, " +
			"and leave out --address and --url; after a restore of PostgreSQL, restart Caddy")
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
	rows := table{
		{"store", path}, {"contains", fmt.Sprint("revision ", held.Revision)},
		{"last change", when(&held.Clock)},
	}
	if facts.SeenAt != nil {
		rows.add("before", fmt.Sprint("revision ", seen.Revision))
		rows.add("seen", when(facts.SeenAt))
		rows.add("lost", plural(int(facts.Lost), "change"))
	}
	if seen.Instance != "" && seen.Instance != held.Instance {
		rows.add("another store", held.Instance+", before "+seen.Instance)
	}
	if err := c.print(facts, rows); err != nil {
		return err
	}
	if err := c.sure("Accept the store as it is now? " +
		"Tokens that were revoked since its last change would work again."); err != nil {
		return err
	}
	if err := store.AcceptOlder(ctx, path, time.Now()); err != nil {
		return err
	}
	return c.done("accepted revision %d", held.Revision)
}
