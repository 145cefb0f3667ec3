package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/store"
)

// copyCommand adds "copy", which moves a store from SQLite to PostgreSQL, or back.
func (c *cli) copyCommand(root *cobra.Command) {
	var from, to string
	cmd := c.localCommand(root, "copy", "Copies a store into PostgreSQL, or out of it, while it is in use",
		"copy --from service_users.db --to {env.DATABASE_URL}",
		func([]string) error { return c.copy(from, to) })
	cmd.Long = `Copies a store into an empty place: from a SQLite file into PostgreSQL, back, or
between two of a kind. The copy has the same ids, secrets, audit trail and deleted
service users, and is compared with the original row by row. It has one revision of
the original; later changes are not in it, and the command reports whether there are
any. If it fails or is interrupted, the target stays empty. Other users of the
machine can read the arguments of a program: in place of a password, or of the whole
URL, write {env.NAME} or {file./path}, in single quotes, or use PGPASSFILE.`
	cmd.Flags().StringVar(&from, "from", "", "the `PLACE` of the original: a file, or a URL postgres://…")
	cmd.Flags().StringVar(&to, "to", "", "the `PLACE` of the copy, which is empty: a file, or a URL postgres://…")
}

func (c *cli) copy(from, to string) (err error) {
	if from == "" || to == "" || c.address != "" || c.store != "" || c.url != "" {
		return usagef("copy needs --from and --to; leave out --address, --store and --url")
	}
	if from, err = place("from", from); err != nil {
		return err
	}
	if to, err = place("to", to); err != nil {
		return err
	}
	opts, err := c.offlineOptions()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	count, end := c.progress("copy", "rows")
	r, err := store.Copy(ctx, from, to, opts, count.Store)
	end()
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted: nothing was copied, and the target stays empty")
	} else if err != nil {
		return err
	}
	next := fmt.Sprintf("next: set \"store\" of Caddy to the copy, if the original is still at revision %d", r.Revision)
	if r.Last > r.Revision {
		next = fmt.Sprintf("but the original is at revision %d by now: make the changes there again, "+
			"or copy again into an empty place while nobody makes any", r.Last)
	}
	return c.print(map[string]any{
		"from": r.From, "to": r.To, "revision": r.Revision, "last_revision": r.Last, "head": r.Head.String(), "tables": r.Tables,
	}, table{{fmt.Sprintf("copied revision %d from %s to %s, and compared each row: %s, %s, %s and %s; %s",
		r.Revision, r.From, r.To, plural(int(r.ServiceUsers), "service user"), plural(int(r.Tables["tokens"]), "token"),
		plural(int(r.Tables["permission_groups"]), "permission group"), plural(int(r.Head.Seq), "audit record"), next)}})
}

// place replaces the placeholders in the place of a store, which the named flag has.
func place(flag, text string) (string, error) {
	text, err := caddy.NewReplacer().ReplaceOrErr(text, true, true)
	if err == nil && strings.Contains(text, "://") && !store.IsURL(text) {
		err = errors.New("the URL of a store begins with postgres:// or postgresql://")
	}
	if err != nil {
		return "", usagef("--%s: %w", flag, err)
	}
	return text, nil
}
