package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// transferTimeout bounds a request that reads or writes the whole store.
const transferTimeout = time.Hour

// patient returns a client for such requests.
func patient(client *admin.Client) *admin.Client {
	copied, transport := *client, *client.HTTP
	transport.Timeout = transferTimeout
	copied.HTTP = &transport
	return &copied
}

// backupCommands adds what is done with the store as a whole.
func (c *cli) backupCommands(root *cobra.Command) {
	var force bool
	backup := c.command(root, "backup FILE", "Copies the store into a file, while it goes on",
		"caddy service-user backup service_users.backup", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			return c.backup(ctx, patient(client), args[0], force)
		})
	backup.Long = `Copies the store, as it is at one revision, into a new file that only you can
read. It holds the hashes of all tokens. "-" is the standard output.`
	backup.Flags().BoolVar(&force, "force", false, "replace a file that exists")

	restore := c.command(root, "restore FILE", "Replaces what the store holds by a backup",
		"caddy service-user restore service_users.backup --yes", 1, c.restore)
	restore.Long = `Replaces what the store holds by a backup of it, in one transaction. The backup is
checked first; when there is anything wrong with it, or it is one of another store,
nothing changes. Changes since the backup are lost, and tokens that were revoked
since are valid again. The audit trail goes on. With --store it also makes a new
store where there is none, and moves one aside that cannot be opened. "-" is the
standard input.`
	run := restore.RunE
	restore.RunE = func(cmd *cobra.Command, args []string) error {
		if c.store == "" {
			return run(cmd, args)
		}
		err := c.restoreOffline(context.Background(), args[0])
		return c.exit(cmd, exitCode(err), err)
	}
	c.destructive(restore, nil)

	var head string
	check := c.command(root, "check [FILE]", "Looks for damage in the store, or in a backup",
		"caddy service-user check service_users.backup", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			query := ""
			if head != "" {
				query = "?head=" + url.QueryEscape(head)
			}
			var r admin.StoreReport
			if err := patient(client).Do(ctx, http.MethodGet, "/service_users/check"+query, nil, &r); err != nil {
				return err
			}
			return c.printReport(r)
		})
	check.Long = `Looks for damage in the store, or in a backup: pages and indexes, rows that lead
nowhere, rules, conditions and hashes that cannot be read, and the chain of the
audit trail. Nothing is changed. With --store, and with a FILE, no Caddy need run.`
	check.Flags().StringVar(&head, "head", "", "a head of the audit trail that was noted down before, SEQ:HASH: tells a trail that was cut since")
	exactly, asked := check.Args, check.RunE
	check.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return exactly(cmd, args)
	}
	check.RunE = func(cmd *cobra.Command, args []string) error {
		file := c.store
		switch {
		case len(args) == 0 && file == "":
			return asked(cmd, args)
		case len(args) == 1 && (c.address != "" || file != "" || c.url != ""):
			return c.exit(cmd, exitUsage, errors.New("a FILE is checked by itself; leave out --address, --store and --url, or FILE"))
		case len(args) == 1:
			file = args[0]
		}
		err := c.checkFile(context.Background(), file, head)
		return c.exit(cmd, exitCode(err), err)
	}
}

// backupResult is what there is to say about a backup.
type backupResult struct {
	File         string `json:"file"`
	Revision     int64  `json:"revision"`
	ServiceUsers int64  `json:"service_users"`
	Head         string `json:"head"`
	Size         int64  `json:"size"`
	SHA256       string `json:"sha256"`
}

// backup writes the file whole or not at all.
func (c *cli) backup(ctx context.Context, client *admin.Client, path string, force bool) error {
	dir := filepath.Dir(path)
	if path == "-" {
		if out, ok := c.stdout.(*os.File); ok && term.IsTerminal(int(out.Fd())) {
			return usageError{errors.New("the standard output is a terminal; name a file, or send the backup to a program")}
		}
		dir = ""
	} else if err := c.mayWrite(path, force); err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, ".service_users-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	size, sum, err := client.Backup(ctx, temp)
	if err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	contents, err := store.ReadContents(ctx, temp.Name())
	if err != nil {
		return fmt.Errorf("reading the backup: %w", err)
	}
	result := backupResult{path, contents.Revision, contents.ServiceUsers, contents.Head.String(), size, hex.EncodeToString(sum)}
	if path == "-" {
		if _, err := temp.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.Copy(c.stdout, temp); err != nil {
			return err
		}
		c.stdout = c.stderr // what is said about it
	} else {
		if err := c.mayWrite(path, force); err != nil {
			return err
		}
		if err := errors.Join(temp.Close(), os.Rename(temp.Name(), path), syncDirectory(dir)); err != nil {
			return err
		}
	}
	return c.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "file\t%s\nrevision\t%d\nservice users\t%d\nhead\t%s\nsize\t%d\nsha256\t%s\n",
			cell(result.File), result.Revision, result.ServiceUsers, result.Head, result.Size, result.SHA256)
	})
}

// mayWrite refuses a place where something is, and with force what is, or could be, a
// store in use.
func (c *cli) mayWrite(path string, force bool) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !force {
		return fmt.Errorf("%q exists already; name another file, or add --force to replace it", path)
	}
	if live, err := os.Stat(c.store); err == nil && os.SameFile(info, live) {
		return fmt.Errorf("%q is the store itself; name another file", path)
	}
	if _, err := os.Lstat(path + "-wal"); err == nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%q is a database in use, or no file; name another file", path)
	}
	for _, suffix := range store.Companions() {
		database, ok := strings.CutSuffix(path, suffix)
		if !ok {
			continue
		}
		if _, err := os.Lstat(database); err == nil {
			return fmt.Errorf("%q belongs to the database %q; name another file", path, database)
		}
	}
	return nil
}

func syncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// openBackup opens a file that is to be restored, and says what it holds.
func (c *cli) openBackup(ctx context.Context, path string) (file *os.File, contents store.Contents, remove func(), err error) {
	remove = func() {}
	name := path
	if path == "-" {
		if file, err = os.CreateTemp("", ".service_users-*"); err != nil {
			return nil, contents, remove, err
		}
		path = file.Name()
		remove = func() { _ = os.Remove(path) }
		_, err = io.Copy(file, os.Stdin)
		if err = errors.Join(err, file.Close()); err != nil {
			return nil, contents, remove, err
		}
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		if info, err := os.Stat(real + "-wal"); err == nil && info.Size() > 0 {
			return nil, contents, remove, fmt.Errorf("%q is no backup but a database in use, or a copy of one: there is %q beside it; make a backup of it with --store", path, real+"-wal")
		}
	}
	if contents, err = store.ReadContents(ctx, path); err != nil {
		return nil, contents, remove, fmt.Errorf("the backup %q is refused, and nothing was changed: %w", name, err)
	}
	file, err = os.Open(path)
	return file, contents, remove, err
}

// restore sends a backup to the store.
func (c *cli) restore(ctx context.Context, client *admin.Client, args []string) error {
	file, backup, remove, err := c.openBackup(ctx, args[0])
	defer remove()
	if err != nil {
		return err
	}
	defer file.Close()
	if !c.yes {
		var events admin.AuditEventList
		var ready admin.Readiness
		if err := client.Do(ctx, http.MethodGet, "/audit_events?limit=1", nil, &events); err != nil {
			return err
		}
		if err := client.Do(ctx, http.MethodGet, "/service_users/readyz", nil, &ready); err != nil {
			return err
		}
		lost := -backup.Head.Seq
		if len(events.AuditEvents) > 0 {
			lost += events.AuditEvents[0].Seq
		}
		if err := c.sure("Replace what the store holds at revision %d by its backup of revision %d? Lost since then: %s; and tokens that were revoked since are valid again.",
			ready.Revision, backup.Revision, plural(int(max(0, lost)), "change")); err != nil {
			return err
		}
	}
	digest := sha256.New()
	size, err := io.Copy(digest, file)
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	r, err := patient(client).Restore(ctx, file, size, digest.Sum(nil))
	if err != nil {
		return err
	}
	return c.printRestored(r)
}

// restoreOffline restores into the store file, or makes a new one.
func (c *cli) restoreOffline(ctx context.Context, path string) error {
	opts, err := c.offlineOptions()
	if err != nil {
		return err
	}
	_, missing := os.Lstat(c.store)
	var broken error
	if missing == nil {
		open, err := store.Open(ctx, c.store, opts)
		if err == nil {
			err = c.restore(ctx, admin.Offline(open, store.Local), []string{path})
			return errors.Join(err, open.Close())
		}
		if !store.CanReplace(err) {
			return err
		}
		broken = err
	}
	file, backup, remove, err := c.openBackup(ctx, path)
	defer remove()
	if err != nil {
		return err
	}
	defer file.Close()
	if broken != nil {
		err = c.sure("%v. Move it aside, and make a new store out of the backup of revision %d?", broken, backup.Revision)
	} else {
		err = c.sure("Make the new store %s out of the backup of revision %d?", c.store, backup.Revision)
	}
	if err != nil {
		return err
	}
	by := store.Local
	by.Operation = store.NewOperationID()
	r, aside, err := store.RestoreNew(ctx, c.store, by, file, opts, broken != nil)
	if aside != "" {
		fmt.Fprintf(c.stderr, "The store could not be opened, and is kept as %q.\n", aside)
	}
	if err != nil {
		return err
	}
	return c.printRestored(admin.ShowRestored(r))
}

func (c *cli) printRestored(r admin.RestoreReport) error {
	note := ""
	if r.RevivedTokens > 0 {
		note = fmt.Sprintf("Of the tokens that were revoked or deleted since the backup, %d are valid again; \"audit list\" names them.", r.RevivedTokens)
	}
	return c.print(r, func(w io.Writer) {
		fmt.Fprintf(w, "revision\t%d\nservice users\t%d\nhead\t%s\nbackup revision\t%d\nrevision before\t%d\nlost changes\t%d\nrevived tokens\t%d\n",
			r.Revision, r.ServiceUsers, r.Head, r.BackupRevision, r.RevisionBefore, r.LostChanges, r.RevivedTokens)
	}, note)
}

// checkFile checks a database without a server.
func (c *cli) checkFile(ctx context.Context, path, head string) error {
	var known store.AuditHead
	if head != "" {
		var ok bool
		if known, ok = store.ParseAuditHead(head); !ok {
			return usageError{errors.New("--head is not the number of a record and its hash, SEQ:HASH")}
		}
	}
	opts, err := c.offlineOptions()
	if err != nil {
		return err
	}
	r, err := store.CheckFile(ctx, path, opts, known)
	if err != nil {
		return err
	}
	return c.printReport(admin.ShowReport(r))
}

// printReport ends with an error when there are findings.
func (c *cli) printReport(r admin.StoreReport) error {
	err := c.print(r, func(w io.Writer) {
		var rows []string
		for table, n := range r.Tables {
			rows = append(rows, fmt.Sprintf("%s %d", table, n))
		}
		slices.Sort(rows)
		fmt.Fprintf(w, "schema\t%d\nrevision\t%d\nservice users\t%d\nhead\t%s\nrows\t%s\n", r.Schema, r.Revision, r.ServiceUsers, r.Head, dash(strings.Join(rows, ", ")))
		for _, finding := range r.Findings {
			fmt.Fprintf(w, "finding\t%s\n", cell(finding))
		}
		if r.OK {
			fmt.Fprint(w, "findings\tnone\n")
		}
	})
	if err == nil && !r.OK {
		err = errors.New(plural(len(r.Findings), "finding"))
	}
	return err
}
