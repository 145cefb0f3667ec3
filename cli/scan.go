package cli

import (
	"bufio"
	"bytes"
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
	scan := c.localCommand(root, "scan [PATH…|-]", "Finds tokens that leaked into files, and their service users",
		"scan config.yml", func(args []string) error { return c.scan(args, revoke) })
	scan.Long = `Finds tokens that leaked into files, into directories with all files in them, or into
the standard input ("-"), and names their service users. Without an argument the
command scans this directory. It recognises a token by its form and checksum, plain
and inside of base64, such as the value of a Basic header, and never prints one.
Without a server it finds tokens, but cannot name their service users. It does not
look into ".git" (try git log -p --all | caddy service-user scan -), behind symbolic
links, into texts in UTF-16, or into binary files of more than 10 MiB.

The exit code is 0 if it found no token, and 1 if it found one.`
	scan.Flags().BoolVar(&revoke, "revoke", false, "revoke the tokens that are found")
	c.destructive(scan, func() bool { return revoke })
}

// leak is a secret that was found, with its token if that is known.
type leak struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Base64 bool   `json:"base64"`
	Hint   string `json:"hint"`
	admin.FoundToken
}

// leaks is the result of a scan.
type leaks struct {
	Found    []leak   `json:"found"`
	LookedUp bool     `json:"looked_up"` // whether a store could be asked for the tokens
	Files    int      `json:"files"`     // that were read
	Skipped  []string `json:"skipped"`   // files that are binary and large
	Unread   []string `json:"unread"`    // files and directories that could not be read
	read     *counter // of bytes
}

func (c *cli) scan(paths []string, revoke bool) (err error) {
	if len(paths) == 0 {
		paths = []string{"."}
	}
	count, end := c.progress("scan", "MB")
	found := leaks{Found: []leak{}, Skipped: []string{}, Unread: []string{}, read: count}
	for _, path := range paths {
		if err := found.scanPath(path); err != nil {
			end()
			return err
		}
	}
	end()
	if len(found.Found) == 0 {
		return errors.Join(c.printLeaks(found), found.verdict())
	}
	disconnect, err := c.connect()
	if err == nil {
		defer func() { err = errors.Join(err, disconnect()) }()
		c.client.Wait = "" // nothing changes yet
		err = c.lookUp(&found)
		c.client.Wait = c.wait
	}
	if errors.As(err, new(usageError)) {
		return err
	}
	if err := c.printLeaks(found); err != nil {
		return err
	}
	switch {
	case revoke && err == nil:
		err = c.revokeLeaks(found)
	case !revoke && err != nil:
		fmt.Fprintf(c.stderr, "the owners of the tokens are unknown: %s\n", cell(c.explain(err)))
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
		notes = append(notes, "skipped, since it is large and binary: "+path)
	}
	for _, reason := range l.Unread {
		notes = append(notes, "cannot be read: "+reason)
	}
	if len(l.Found) == 0 {
		return c.print(l, table{{"no token found in " + plural(l.Files, "file")}}, notes...)
	}
	rows := table{{"FILE", "LINE", "HINT", "STATE", "SERVICE USER", "TOKEN"}}
	for _, f := range l.Found {
		state := string(f.State)
		if l.LookedUp && f.TokenID == "" {
			state = "unknown"
		}
		rows.add(f.File, f.Line, "…"+f.Hint, state, f.Name, f.TokenID)
	}
	return c.print(l, rows, notes...)
}

// lookUp asks for the tokens of the secrets. It sends only the digests of the secrets.
func (c *cli) lookUp(l *leaks) error {
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
		in := admin.FindTokensInput{Digests: some}
		if err := c.do(http.MethodPost, "/service_users/find_tokens", in, &known); err != nil {
			return err
		}
		for _, t := range known.Tokens {
			for _, i := range places[t.Digest] {
				l.Found[i].FoundToken = t
			}
		}
	}
	l.LookedUp = true
	return nil
}

// revokeLeaks revokes the tokens that were found, each once. It goes on after an error.
func (c *cli) revokeLeaks(l leaks) error {
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
	if err := c.sure("Revoke %s? Every client that uses one of them is refused from then on.",
		strings.Join(names, ", ")); err != nil {
		return err
	}
	var failed error
	for i, f := range live {
		if err := c.change(http.MethodDelete, f.URI, "revoked %s", names[i]); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s is not revoked: %w", names[i], err))
		}
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
		return l.scanFile(path, file, err)
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
			file, err := root.Open(name)
			if err := l.scanFile(shown, file, err); err != nil {
				l.unread(shown, err)
			}
		}
		return nil
	})
}

func (l *leaks) unread(shown string, err error) {
	if inner := (*fs.PathError)(nil); errors.As(err, &inner) {
		err = inner.Err // its path begins at the root of the walk
	}
	l.Unread = append(l.Unread, fmt.Sprintf("%s: %v", shown, err))
}

// scanFile scans a file that was just opened, with the result err, and closes it.
func (l *leaks) scanFile(shown string, file *os.File, err error) error {
	if err != nil {
		return err
	}
	defer file.Close()
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
		if l.read != nil { // tests have none
			l.read.Add(int64(n))
		}
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
				Hint:       access.Hint(s.Secret),
				FoundToken: admin.FoundToken{Digest: hex.EncodeToString(digest[:])},
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
