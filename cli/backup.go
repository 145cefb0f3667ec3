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

// patient returns an action whose requests may take as long as transferTimeout.
func (c *cli) patient(do action) action {
	return c.connected(func(args []string) error {
		c.client.HTTP.Timeout = transferTimeout
		return do(args)
	})
}

// backupCommands adds the commands on the store as a whole.
func (c *cli) backupCommands(root *cobra.Command) {
	var force bool
	backup := c.localCommand(root, "backup FILE", "Copies the store into a file, while it is in use",
		"backup service_users.backup", c.patient(func(args []string) error { return c.backup(args[0], force) }))
	backup.Long = `Copies the store, at one revision, into a new file that only you can read. The file
contains the hashes of all tokens. "-" is the standard output.`
	backup.Flags().BoolVar(&force, "force", false, "replace a file that exists")

	restore := c.localCommand(root, "restore FILE",
		"Replaces the content of a store by a backup, while Caddy is stopped",
		"restore service_users.backup --store service_users.db --yes",
		func(args []string) error { return c.restore(context.Background(), args[0]) })
	restore.Long = `Replaces the content of the store at --store by a backup of it, whole or not at all.
Stop Caddy first, and start it again afterwards. The command checks the backup first;
if the backup has damage or is of another store, nothing changes. Changes since the
backup are lost, and tokens that were revoked since then are valid again. The audit
trail continues, with a record of the restore. Without a file at --store, restore makes
a store; it moves a file aside that it cannot open. "-" is the standard input.`
	c.destructive(restore, func() bool { return c.store != "" })

	query := url.Values{}
	check := c.localCommand(root, "check [FILE]", "Looks for damage in the store, or in a backup",
		"check service_users.backup",
		func(args []string) error {
			switch {
			case len(args) == 1 && (c.address != "" || c.store != "" || c.url != ""):
				return usagef("check reads FILE alone; leave out --address, --store and --url, or FILE")
			case len(args) == 1:
				return c.checkFile(context.Background(), args[0], query.Get("head"))
			case c.store != "" && !store.IsURL(c.store):
				return c.checkFile(context.Background(), c.store, query.Get("head"))
			}
			return c.patient(func([]string) error {
				var r admin.StoreReport
				_, end := c.progress("check", "")
				err := c.do(http.MethodGet, withQuery("/service_users/check", query), nil, &r)
				end()
				if err != nil {
					return err
				}
				return c.printReport(r)
			})(args)
		})
	check.Long = `Looks for damage in the store, or in a backup: damaged pages and indexes, references
to rows that are missing, rules, conditions and hashes that cannot be read, and a
broken chain of the audit trail. The command changes nothing. It needs a running Caddy
only without --store and FILE.`
	headFlag(check, query)
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
func (c *cli) backup(path string, force bool) error {
	ctx := context.Background()
	dir := filepath.Dir(path)
	if path == "-" {
		if out, ok := c.stdout.(*os.File); ok && term.IsTerminal(int(out.Fd())) {
			return usagef("the standard output is a terminal; name a file, or send the backup to a program")
		}
		dir = ""
	} else if err := c.mayWrite(path, force); err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, ".service_users-*") // 0600
	if err != nil {
		return store.ExplainPath(path, err)
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	count, end := c.progress("backup", "MB")
	size, sum, err := c.client.Backup(ctx, io.MultiWriter(temp, count))
	end()
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
	return c.print(result, table{
		{"file", result.File}, {"revision", result.Revision}, {"service users", result.ServiceUsers},
		{"head", result.Head}, {"size", result.Size}, {"sha256", result.SHA256},
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
		return fmt.Errorf("%q is a database in use, or not a file; name another file", path)
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

// spool copies the standard input into a file, and returns its path.
func spool() (path string, err error) {
	file, err := os.CreateTemp("", ".service_users-*")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(file, os.Stdin)
	return file.Name(), errors.Join(err, file.Close())
}

// readBackup reads the contents of a backup. name is its name in errors.
func readBackup(ctx context.Context, name, path string) (contents store.Contents, err error) {
	// A database in use has its last changes in the log, which a copy of the file would miss.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		if info, err := os.Stat(real + "-wal"); err == nil && info.Size() > 0 {
			return contents, fmt.Errorf("%q is a database in use, or a copy of one, and not a backup: "+
				"there is %q beside it; make a backup of it with --store", path, real+"-wal")
		}
	}
	if contents, err = store.ReadContents(ctx, path); err != nil {
		err = fmt.Errorf("the backup %q is refused, and nothing was changed: %w", name, err)
	}
	return contents, err
}

// restore replaces the store at --store by a backup, or makes a new store from it.
func (c *cli) restore(ctx context.Context, path string) error {
	if c.store == "" {
		return usagef("a store is restored while Caddy is stopped: stop Caddy, run: " +
			"caddy service-user --store PATH restore FILE, and start Caddy again")
	} else if store.IsURL(c.store) {
		return usagef("restore makes a SQLite file: --store is a path; \"copy --from FILE --to URL\" makes a store " +
			"in an empty schema of PostgreSQL from a backup, and psql or pg_restore from a dump")
	}
	opts, err := c.offlineOptions()
	if err != nil {
		return err
	}
	name := path
	if path == "-" {
		path, err = spool()
		defer os.Remove(path)
		if err != nil {
			return err
		}
	}
	backup, err := readBackup(ctx, name, path)
	if err != nil {
		return err
	}
	file, err := os.Open(path)
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
			question = fmt.Sprintf("Replace the content of the store at revision %d by its backup of "+
				"revision %d? Lost since then: %s; "+
				"tokens that were revoked since then are valid again.",
				current.Directory().Revision(), backup.Revision, plural(int(lost), "change"))
			if err := current.Close(); err != nil {
				return err
			}
		case store.CanReplace(err):
			question = fmt.Sprintf("%v. Move it aside, and make a new store out of the backup "+
				"of revision %d?", err, backup.Revision)
			replace = true
		default:
			return err
		}
	}
	if err := c.sure("%s", question); err != nil {
		return err
	}
	by := store.LocalUser(userName())
	by.Operation = store.NewOperationID()
	count, end := c.progress("restore", "MB")
	r, aside, err := store.RestoreFile(ctx, c.store, by, io.TeeReader(file, count), opts, replace)
	end()
	if aside != "" {
		fmt.Fprintf(c.stderr, "The store could not be opened, and is kept as %q.\n", aside)
	}
	if err != nil {
		return err
	}
	note := ""
	if r.RevivedTokens > 0 {
		note = fmt.Sprintf("Valid again, although revoked, deleted or deactivated since the backup: %s; "+
			"\"audit list\" names them.", plural(int(r.RevivedTokens), "token"))
	}
	return c.print(r, table{
		{"revision", r.Revision}, {"service users", r.ServiceUsers}, {"head", r.Head},
		{"backup revision", r.BackupRevision}, {"revision before", r.RevisionBefore},
		{"lost changes", r.LostChanges}, {"revived tokens", r.RevivedTokens},
	}, note)
}

// checkFile checks a database without a server.
func (c *cli) checkFile(ctx context.Context, path, head string) error {
	var known store.AuditHead
	if head != "" {
		var ok bool
		if known, ok = store.ParseAuditHead(head); !ok {
			return usagef("--head is not the number of a record and its hash, SEQ:HASH")
		}
	}
	opts, err := c.offlineOptions()
	if err != nil {
		return err
	}
	_, end := c.progress("check", "")
	r, err := store.CheckFile(ctx, path, opts, known)
	end()
	if path == c.store && errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; is the volume mounted, and is this the path of \"store\" in the Caddyfile?", err)
	}
	if err != nil {
		return err
	}
	return c.printReport(admin.ShowReport(r))
}

// printReport prints the result of a check. It returns an error if there are findings.
func (c *cli) printReport(r admin.StoreReport) error {
	var counts []string
	for name, n := range r.Tables {
		counts = append(counts, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(counts)
	rows := table{
		{"schema", r.Schema}, {"revision", r.Revision}, {"service users", r.ServiceUsers},
		{"head", r.Head}, {"rows", strings.Join(counts, ", ")},
	}
	for _, finding := range r.Findings {
		rows.add("finding", finding)
	}
	if r.OK {
		rows.add("findings", "none")
	}
	err := c.print(r, rows)
	if err == nil && !r.OK {
		err = errors.New(plural(len(r.Findings), "finding"))
	}
	return err
}
