package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// scanCommand adds "scan", which finds tokens that leaked into files, and their owners.
func (c *cli) scanCommand(root *cobra.Command) {
	var revoke bool
	scan := c.command(root, "scan [PATH…|-]", "Finds tokens that leaked into files, and their service users",
		"caddy service-user scan config.yml", 0, nil)
	scan.Long = `Finds tokens that leaked into files, into directories with all files in them, or into
the standard input ("-"), and names their service users. Without an argument it scans
this directory. It knows a token by its form and checksum, plain and inside of base64,
such as the value of a Basic header, and never prints one. It finds tokens without a
server, but cannot name their service users then. It does not look into ".git" (try
git log -p --all | caddy service-user scan -), behind symbolic links, into texts in
UTF-16, or into binary files of more than 10 MiB.

The exit code is 0 when nothing was found, and 1 when something was.`
	scan.Args = func(cmd *cobra.Command, args []string) error {
		if slices.Contains(args, "") { // a variable of a script that is not set
			return c.exit(cmd, exitUsage, fmt.Errorf("an argument is empty; usage: %s", cmd.UseLine()))
		}
		return nil
	}
	scan.RunE = func(cmd *cobra.Command, args []string) error {
		err := c.scan(args, revoke)
		return c.exit(cmd, exitCode(err), err)
	}
	scan.Flags().BoolVar(&revoke, "revoke", false, "revoke the tokens that are found")
	c.destructive(scan, func() bool { return revoke })
}

// leak is a secret that was found, with its token if that is known.
type leak struct {
	File          string           `json:"file"`
	Line          int              `json:"line"`
	Base64        bool             `json:"base64"`
	Hint          string           `json:"hint"`
	Digest        string           `json:"digest"` // its SHA-256
	TokenID       string           `json:"token_id"`
	ServiceUserID string           `json:"service_user_id"`
	Name          string           `json:"name"`
	State         store.TokenState `json:"state"`
	URI           string           `json:"uri"`
}

// leaks is the result of a scan.
type leaks struct {
	Found    []leak   `json:"found"`
	LookedUp bool     `json:"looked_up"` // whether a store could be asked for the tokens
	Files    int      `json:"files"`     // that were read
	Skipped  []string `json:"skipped"`   // files that are binary and large
	Unread   []string `json:"unread"`    // files and directories that could not be read
}

func (c *cli) scan(paths []string, revoke bool) error {
	if len(paths) == 0 {
		paths = []string{"."}
	}
	found := leaks{Found: []leak{}, Skipped: []string{}, Unread: []string{}}
	for _, path := range paths {
		if err := found.scanPath(path); err != nil {
			return err
		}
	}
	if len(found.Found) == 0 {
		return errors.Join(c.printLeaks(found), found.verdict())
	}
	ctx := context.Background()
	client, done, err := c.connect(ctx)
	if err == nil {
		defer done()
		err = found.lookUp(ctx, client)
	}
	if errors.As(err, new(usageError)) {
		return err
	}
	if err := c.printLeaks(found); err != nil {
		return err
	}
	switch {
	case revoke && err == nil:
		err = c.revokeLeaks(ctx, client, found)
	case !revoke && err != nil:
		fmt.Fprintf(c.stderr, "could not look up whose they are: %s\n", cell(c.explain(err)))
		err = nil
	}
	if err != nil {
		return err
	}
	return found.verdict()
}

// verdict returns an error if the scan found a secret, or could not read a file.
func (l leaks) verdict() error {
	switch unread := plural(len(l.Unread), "file"); {
	case len(l.Found) > 0 && len(l.Unread) > 0:
		return fmt.Errorf("tokens found in %s, and %s cannot be read", plural(len(l.Found), "place"), unread)
	case len(l.Found) > 0:
		return fmt.Errorf("tokens found in %s", plural(len(l.Found), "place"))
	case len(l.Unread) > 0:
		return fmt.Errorf("nothing found, but %s cannot be read", unread)
	}
	return nil
}

func (c *cli) printLeaks(l leaks) error {
	var notes []string
	for _, path := range l.Skipped {
		notes = append(notes, "skipped, since it is large and binary: "+cell(path))
	}
	for _, what := range l.Unread {
		notes = append(notes, "cannot be read: "+cell(what))
	}
	return c.print(l, func(w io.Writer) {
		if len(l.Found) == 0 {
			fmt.Fprintf(w, "no token found in %s\n", plural(l.Files, "file"))
			return
		}
		fmt.Fprintln(w, "FILE\tLINE\tHINT\tSTATE\tSERVICE USER\tTOKEN")
		for _, f := range l.Found {
			state := dash(string(f.State))
			if l.LookedUp && f.TokenID == "" {
				state = "unknown"
			}
			fmt.Fprintf(w, "%s\t%d\t…%s\t%s\t%s\t%s\n",
				cell(f.File), f.Line, f.Hint, state, dash(cell(f.Name)), dash(cell(f.TokenID)))
		}
	}, notes...)
}

// lookUp asks for the tokens of the secrets. It sends only the digests of the secrets.
func (l *leaks) lookUp(ctx context.Context, client *admin.Client) error {
	places := make(map[string][]int)
	var digests []string
	for i, f := range l.Found {
		if places[f.Digest] == nil {
			digests = append(digests, f.Digest)
		}
		places[f.Digest] = append(places[f.Digest], i)
	}
	for some := range slices.Chunk(digests, admin.MaxDigests) {
		var known admin.FoundTokens
		err := client.Do(ctx, http.MethodPost, "/service_users/find_tokens",
			admin.FindTokensInput{Digests: some}, &known)
		if err != nil {
			return err
		}
		for _, t := range known.Tokens {
			for _, i := range places[t.Digest] {
				f := &l.Found[i]
				f.TokenID, f.ServiceUserID, f.Name = t.TokenID, t.ServiceUserID, t.Name
				f.State, f.URI = t.State, t.URI
			}
		}
	}
	l.LookedUp = true
	return nil
}

// revokeLeaks revokes the tokens that were found, each once. It goes on after an error.
func (c *cli) revokeLeaks(ctx context.Context, client *admin.Client, l leaks) error {
	var live []leak
	var names []string
	for _, f := range l.Found {
		same := func(other leak) bool { return other.TokenID == f.TokenID }
		if f.TokenID != "" && f.State != store.TokenRevoked && !slices.ContainsFunc(live, same) {
			live, names = append(live, f), append(names, f.TokenID+" of "+f.Name)
		}
	}
	if len(live) == 0 {
		return c.done("nothing to revoke")
	}
	if err := c.sure("Revoke %s? Whoever uses a token of these is refused from then on.", strings.Join(names, ", ")); err != nil {
		return err
	}
	var failed error
	for i, f := range live {
		err := client.Do(ctx, http.MethodDelete, f.URI, nil, nil)
		if err == nil {
			err = c.done("revoked %s", names[i])
		} else {
			err = fmt.Errorf("%s is not revoked: %w", names[i], err)
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// How files are read.
const (
	scanBuffer    = 1 << 20
	scanLead      = 8000     // a file with a NUL among its first bytes, up to this number, is binary
	maxScanBinary = 10 << 20 // binary files are read up to this size
)

// scanPath scans a file, a directory with all files in it, or the standard input.
func (l *leaks) scanPath(path string) error {
	if path == "-" {
		return l.scanStream("(stdin)", os.Stdin)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		return l.scanFile(path, file)
	}
	root, err := os.OpenRoot(path) // no symbolic link leads out of it
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		shown := filepath.Join(path, filepath.FromSlash(name))
		switch {
		case err != nil:
			l.unread(shown, err)
		case entry.IsDir() && entry.Name() == ".git":
			return fs.SkipDir
		case entry.Type().IsRegular():
			if err := l.scanIn(root, name, shown); err != nil {
				l.unread(shown, err)
			}
		}
		return nil
	})
}

func (l *leaks) scanIn(root *os.Root, name, shown string) error {
	file, err := root.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	return l.scanFile(shown, file)
}

func (l *leaks) unread(shown string, err error) {
	if inner := (*fs.PathError)(nil); errors.As(err, &inner) {
		err = inner.Err // its path begins at the root of the walk
	}
	l.Unread = append(l.Unread, fmt.Sprintf("%s: %v", shown, err))
}

func (l *leaks) scanFile(shown string, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	in := bufio.NewReaderSize(file, scanBuffer)
	if info.Size() > maxScanBinary {
		lead, _ := in.Peek(scanLead) // the next read returns an error again
		if bytes.IndexByte(lead, 0) >= 0 {
			l.Skipped = append(l.Skipped, shown)
			return nil
		}
	}
	return l.scanStream(shown, in)
}

// scanStream looks for secrets in a stream, up to its end.
func (l *leaks) scanStream(shown string, in io.Reader) error {
	l.Files++
	text := make([]byte, 0, scanBuffer)
	for line := 1; ; {
		n, err := io.ReadFull(in, text[len(text):cap(text)])
		text = text[:len(text)+n]
		cut := len(text)
		if err == nil {
			cut = max(0, cut-access.MaxFoundBytes) // a secret that begins later may be cut
		}
		at := 0
		for _, s := range access.FindSecrets(text) {
			if s.Offset >= cut {
				break
			}
			line += bytes.Count(text[at:s.Offset], []byte("\n"))
			at = s.Offset
			digest := sha256.Sum256([]byte(s.Secret))
			l.Found = append(l.Found, leak{
				File: shown, Line: line, Base64: s.Base64,
				Hint: access.Hint(s.Secret), Digest: hex.EncodeToString(digest[:]),
			})
		}
		line += bytes.Count(text[at:cut], []byte("\n"))
		text = text[:copy(text, text[cut:])]
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return nil
		default:
			return err
		}
	}
}
