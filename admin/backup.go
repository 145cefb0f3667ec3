package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/serviceusers/caddy-service-users/store"
)

// DatabaseType is the Content-Type of a backup.
const DatabaseType = "application/vnd.sqlite3"

// maxBackup limits the size in bytes of a backup to restore: 64 GiB.
const maxBackup = 64 << 30

// StoreReport is the result of a check of the store.
type StoreReport struct {
	// whether the store has no findings
	OK bool `json:"ok"`
	// the version of the database schema
	Schema int `json:"schema"`
	// the number of the last change
	Revision int64 `json:"revision"`
	// the number of service users
	ServiceUsers int64 `json:"service_users"`
	// the last record of the audit trail, SEQ:HASH
	Head string `json:"head"`
	// the number of rows of each table
	Tables map[string]int64 `json:"tables"`
	// first damage, each with a way to repair it; then values that older versions allowed and
	// this version does not, which a restore accepts
	Findings []string `json:"findings"`
}

// ShowReport converts a report of the store to the form of the API.
func ShowReport(r store.CheckReport) StoreReport {
	findings := append(append([]string{}, r.Findings...), r.Notes...)
	out := StoreReport{
		OK: len(findings) == 0, Schema: r.Schema, Revision: r.Revision, ServiceUsers: r.ServiceUsers,
		Head: r.Head.String(), Tables: r.Tables, Findings: findings,
	}
	if out.Tables == nil {
		out.Tables = map[string]int64{}
	}
	return out
}

// check examines the whole store for damage. The pages and indexes of the database must be intact,
// every row must refer to existing rows and be enforceable, and the audit trail must have an
// unbroken chain. This operation requires the rights of an admin.
func (a *API) check(c *call, q VerifyQuery) (StoreReport, error) {
	known, err := q.head()
	if err != nil {
		return StoreReport{}, err
	}
	report, err := a.store.Check(c.Context(), c.by, known)
	if err != nil {
		return StoreReport{}, err
	}
	return ShowReport(report), nil
}

// RestoreReport is the result of a restore.
type RestoreReport struct {
	// the revision of the store after the restore
	Revision int64 `json:"revision"`
	// the number of service users after the restore
	ServiceUsers int64 `json:"service_users"`
	// the last record of the audit trail, SEQ:HASH
	Head string `json:"head"`
	// the revision of the backup
	BackupRevision int64 `json:"backup_revision"`
	// the revision of the store before the restore
	RevisionBefore int64 `json:"revision_before"`
	// the number of changes since the backup, which the restore has undone
	LostChanges int64 `json:"lost_changes"`
	// the number of tokens that were revoked or deleted since the backup and are valid again
	RevivedTokens int64 `json:"revived_tokens"`
}

// ShowRestored converts the result of a restore to the form of the API.
func ShowRestored(r store.Restored) RestoreReport {
	return RestoreReport{
		Revision: r.After.Revision, ServiceUsers: r.After.ServiceUsers, Head: r.After.Head.String(),
		BackupRevision: r.Backup.Revision, RevisionBefore: r.Before.Revision,
		LostChanges: r.Lost, RevivedTokens: r.Revived,
	}
}

// restore replaces the content of the store by a backup, in one transaction. It first checks the
// backup and builds the directory from it. A backup that is damaged or from a newer version is
// refused, and nothing changes. The answer is 409 if the backup is from another store. Only the
// local door accepts this operation.
func (a *API) restore(c *call, backup upload) (RestoreReport, error) {
	if c.by.Name != store.Local.Name || c.by.Scope != nil {
		return RestoreReport{}, NewError(http.StatusForbidden, "ERR_NGROK_4111",
			"the store is restored at the local door only, because a restore can bring back "+
				"revoked tokens; run it on the machine itself")
	}
	r, err := a.store.Restore(c.Context(), c.by, backup)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return RestoreReport{}, NewError(http.StatusRequestEntityTooLarge, "ERR_BODY_TOO_LARGE",
			fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit))
	case err != nil:
		return RestoreReport{}, err
	}
	return ShowRestored(r), nil
}

// upload is a request body that is a database.
type upload struct{ io.Reader }

// open checks the headers that describe the body. It does not read the body; if the request has a
// Repr-Digest, the reader compares it at the end of the body.
func (u *upload) open(w http.ResponseWriter, r *http.Request) error {
	switch r.Header.Get("Content-Type") {
	case DatabaseType:
	case "":
		return NewError(http.StatusUnsupportedMediaType, "ERR_NGROK_216",
			"the Content-Type is missing; it must be "+DatabaseType)
	default:
		return NewError(http.StatusUnsupportedMediaType, "ERR_NGROK_210",
			"the Content-Type must be "+DatabaseType)
	}
	want, present, err := readDigest(r.Header)
	if err != nil {
		return NewError(http.StatusBadRequest, "ERR_DIGEST", err.Error())
	}
	u.Reader = http.MaxBytesReader(w, r.Body, maxBackup)
	if present {
		digest := sha256.New()
		u.Reader = &verified{io.TeeReader(u.Reader, digest), func() []byte { return digest.Sum(nil) }, want}
	}
	return nil
}

// backup copies the store at one revision and answers with the copy, a SQLite database in one file.
// The store stays in use meanwhile. The copy contains the hashes of all tokens. This operation
// requires the rights of an admin.
func (a *API) backup(c *call, _ None) (*store.Backup, error) {
	return a.store.Backup(c.Context(), c.by)
}

// handleBackup is handle for an operation that answers with a database in place of JSON.
func handleBackup(a *API, method, path string, op func(*call, None) (*store.Backup, error)) route {
	serve := func(w http.ResponseWriter, r *http.Request) {
		c := &call{Request: r, by: actorOf(r.Context()), header: w.Header()}
		err := decodeInput(w, r, new(None))
		var copied *store.Backup
		if err == nil {
			copied, err = op(c, None{})
		}
		if err != nil {
			a.refuse(c, w, method+" "+path, err)
			return
		}
		defer copied.Close()
		h := w.Header()
		h.Set("Content-Type", DatabaseType)
		h.Set("Content-Length", strconv.FormatInt(copied.Size, 10))
		h.Set("Content-Disposition", `attachment; filename="service_users.backup"`)
		h.Set("Repr-Digest", reprDigest(copied.SHA256[:]))
		w.WriteHeader(http.StatusOK)
		// An error has no place in the answer any more. Length and digest show the client
		// that a part is missing.
		_, _ = io.Copy(w, copied)
	}
	return route{method: method, path: path, serve: serve}
}

// reprDigest returns the value of the header Repr-Digest (RFC 9530) for a SHA-256.
func reprDigest(sum []byte) string {
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum) + ":"
}

// readDigest returns the SHA-256 in the header Repr-Digest, which may also contain digests by other
// algorithms. present is false if the header has no SHA-256.
func readDigest(h http.Header) (sum []byte, present bool, err error) {
	for _, member := range strings.Split(strings.Join(h.Values("Repr-Digest"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(member), "=")
		if name != "sha-256" {
			continue
		}
		text := strings.TrimSuffix(strings.TrimPrefix(value, ":"), ":")
		sum, err = base64.StdEncoding.DecodeString(text)
		if err != nil || len(sum) != sha256.Size || len(value) != len(text)+2 {
			return nil, false, errors.New("the form of Repr-Digest is sha-256=:BASE64:, with colons")
		}
		return sum, true, nil
	}
	return nil, false, nil
}

// verified is a body that must have a digest. Its Read returns an error in place of io.EOF if the
// digest is another one.
type verified struct {
	io.Reader
	sum  func() []byte // returns the digest of the bytes read so far
	want []byte
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.Reader.Read(p)
	if err == io.EOF && !bytes.Equal(v.sum(), v.want) {
		err = NewError(http.StatusBadRequest, "ERR_DIGEST",
			"the SHA-256 of the body differs from the one in Repr-Digest; send it again")
	}
	return n, err
}

// Backup requests a backup and writes it to w. It returns the size and the SHA-256 of the backup,
// or an error if any part of it is missing or different.
func (c *Client) Backup(ctx context.Context, w io.Writer) (size int64, sum []byte, err error) {
	req, err := c.request(ctx, http.MethodPost, "/service_users/backup", nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := c.send(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != DatabaseType {
		return 0, nil, c.read(resp, new(struct{}))
	}
	want, present, err := readDigest(resp.Header)
	if err != nil || !present {
		err = errors.New("answered without a digest, not as the service-user API does")
		return 0, nil, &UnreachableError{c.Base, err}
	}
	digest := sha256.New()
	size, err = io.Copy(io.MultiWriter(w, digest), resp.Body)
	if err != nil {
		return size, nil, fmt.Errorf("receiving the backup: %w", err)
	}
	if sum = digest.Sum(nil); !bytes.Equal(sum, want) {
		return size, nil, errors.New("receiving the backup: " +
			"its SHA-256 differs from the one that the server sent; try again")
	}
	return size, sum, nil
}

// Restore sends a backup with the given size and SHA-256 to replace the content of the store.
func (c *Client) Restore(ctx context.Context, backup io.Reader, size int64, sum []byte) (out RestoreReport, err error) {
	req, err := c.request(ctx, http.MethodPost, "/service_users/restore", backup)
	if err != nil {
		return out, err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", DatabaseType)
	req.Header.Set("Repr-Digest", reprDigest(sum))
	resp, err := c.send(req)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	return out, c.read(resp, &out)
}
