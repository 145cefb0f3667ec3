package cli

import (
	"context"
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

// transferTimeout limits a request that reads the whole store.
const transferTimeout = time.Hour

// patient returns a client for such requests.
func patient(client *admin.Client) *admin.Client {
	copied, transport := *client, *client.HTTP
	transport.Timeout = transferTimeout
	copied.HTTP = &transport
	return &copied
}

// backupCommands adds the commands on the store as a whole.
func (c *cli) backupCommands(root *cobra.Command) {
	var force bool
	backup := c.command(root, "backup FILE", "Copies the store into a file, while it is in use",
		"caddy service-user backup service_users.backup", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			return c.backup(ctx, patient(client), args[0], force)
		})
	backup.Long = `Copies the store, as it is at one revision, into a new file that only you can
read. The file has the hashes of all tokens. "-" is the standard output.`
	backup.Flags().BoolVar(&force, "force", false, "replace a file that exists")

	restore := c.command(root, "restore FILE", "Replaces the content of a store by a backup, while Caddy is stopped",
		"caddy service-user restore service_users.backup --store service_users.db --yes", 1, nil)
	restore.Long = `Replaces the content of the store at --store by a backup of it, whole or not at all.
Stop Caddy first, and start it again afterwards. The backup is checked first; if it
has damage or is of another store, nothing changes. Changes since the backup are
lost, and tokens that were revoked since are valid again. The audit trail goes on.
Where there is no store, restore makes one; it moves a store aside that cannot be
opened. "-" is the standard input.`
	restore.RunE = func(cmd *cobra.Command, args []string) error {
		err := c.restore(context.Background(), args[0])
		return c.exit(cmd, exitCode(err), err)
	}
	c.destructive(restore, func() bool { return c.store != "" })

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
	check.Long = `Looks for damage in the store, or in a backup: pages and indexes, references to rows
that are missing, rules, conditions and hashes that cannot be read, and the chain of
the audit trail. Nothing is changed. With --store, and with a FILE, no Caddy need run.`
	check.Flags().StringVar(&head, "head", "",
		"an earlier head of the audit trail, SEQ:HASH: reports a trail that was cut since")
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
			return c.exit(cmd, exitUsage, errors.New(
				"a FILE is checked by itself; leave out --address, --store and --url, or FILE"))
		case len(args) == 1:
			file = args[0]
		}
		err := c.checkFile(context.Background(), file, head)
		return c.exit(cmd, exitCode(err), err)
	}
}

// backupResult describes a backup that was made.
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
			return usageError{errors.New(
				"the standard output is a terminal; name a file, or send the backup to a program")}
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
	result := backupResult{
		path, contents.Revision, contents.ServiceUsers, contents.Head.String(), size, hex.EncodeToString(sum),
	}
	if path == "-" {
		if _, err := temp.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.Copy(c.stdout, temp); err != nil {
			return err
		}
		c.stdout = c.stderr // the result goes there: the standard output has the backup
	} else {
		if err := c.mayWrite(path, force); err != nil {
			return err
		}
		if err := errors.Join(temp.Close(), os.Rename(temp.Name(), path), store.SyncDir(dir)); err != nil {
			return err
		}
	}
	return c.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "file\t%s\nrevision\t%d\nservice users\t%d\nhead\t%s\nsize\t%d\nsha256\t%s\n",
			cell(result.File), result.Revision, result.ServiceUsers, result.Head, result.Size, result.SHA256)
	})
}

// mayWrite refuses a path that has a file. With force it refuses only a file that is, or belongs to,
// a store in use.
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

// openBackup opens a backup and reads its contents. remove removes the copy of the standard input.
func (c *cli) openBackup(ctx context.Context, path string) (
	file *os.File, contents store.Contents, remove func(), err error,
) {
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
	// A database in use has its last changes in the log, which a copy of the file would miss.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		if info, err := os.Stat(real + "-wal"); err == nil && info.Size() > 0 {
			return nil, contents, remove, fmt.Errorf("%q is no backup but a database in use, or a copy of one: "+
				"there is %q beside it; make a backup of it with --store", path, real+"-wal")
		}
	}
	if contents, err = store.ReadContents(ctx, path); err != nil {
		return nil, contents, remove, fmt.Errorf("the backup %q is refused, and nothing was changed: %w", name, err)
	}
	file, err = os.Open(path)
	return file, contents, remove, err
}

// restore replaces the store at --store by a backup, or makes a new store from it.
func (c *cli) restore(ctx context.Context, path string) error {
	if c.store == "" {
		return usageError{errors.New("a store is restored while Caddy is stopped: stop Caddy, run: " +
			"caddy service-user --store PATH restore FILE, and start Caddy again")}
	}
	opts, err := c.offlineOptions()
	if err != nil {
		return err
	}
	file, backup, remove, err := c.openBackup(ctx, path)
	defer remove()
	if err != nil {
		return err
	}
	defer file.Close()
	question := fmt.Sprintf("Make the new store %s out of the backup of revision %d?", c.store, backup.Revision)
	replace := false
	if _, missing := os.Lstat(c.store); missing == nil {
		current, err := store.Open(ctx, c.store, opts)
		switch {
		case err == nil:
			lost := max(0, current.AuditHead().Seq-backup.Head.Seq)
			question = fmt.Sprintf("Replace the content of the store at revision %d by its backup of revision %d? "+
				"Lost since then: %s; and tokens that were revoked since are valid again.",
				current.Directory().Revision(), backup.Revision, plural(int(lost), "change"))
			if err := current.Close(); err != nil {
				return err
			}
		case store.CanReplace(err):
			question = fmt.Sprintf("%v. Move it aside, and make a new store out of the backup of revision %d?",
				err, backup.Revision)
			replace = true
		default:
			return err
		}
	}
	if err := c.sure("%s", question); err != nil {
		return err
	}
	by := store.Local
	by.Operation = store.NewOperationID()
	r, aside, err := store.RestoreFile(ctx, c.store, by, file, opts, replace)
	if aside != "" {
		fmt.Fprintf(c.stderr, "The store could not be opened, and is kept as %q.\n", aside)
	}
	if err != nil {
		return err
	}
	note := ""
	if r.RevivedTokens > 0 {
		note = fmt.Sprintf("Of the tokens that were revoked or deleted since the backup, "+
			"%d are valid again; \"audit list\" names them.", r.RevivedTokens)
	}
	return c.print(r, func(w io.Writer) {
		fmt.Fprintf(w, "revision\t%d\nservice users\t%d\nhead\t%s\nbackup revision\t%d\n",
			r.Revision, r.ServiceUsers, r.Head, r.BackupRevision)
		fmt.Fprintf(w, "revision before\t%d\nlost changes\t%d\nrevived tokens\t%d\n",
			r.RevisionBefore, r.LostChanges, r.RevivedTokens)
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

// printReport prints the result of a check. It returns an error if there are findings.
func (c *cli) printReport(r admin.StoreReport) error {
	err := c.print(r, func(w io.Writer) {
		var rows []string
		for table, n := range r.Tables {
			rows = append(rows, fmt.Sprintf("%s %d", table, n))
		}
		slices.Sort(rows)
		fmt.Fprintf(w, "schema\t%d\nrevision\t%d\nservice users\t%d\nhead\t%s\nrows\t%s\n",
			r.Schema, r.Revision, r.ServiceUsers, r.Head, dash(strings.Join(rows, ", ")))
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
