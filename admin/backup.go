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

// backup copies the store at one revision and answers with the copy, a SQLite database in one file.
// The store stays in use meanwhile. The copy contains the hashes of all tokens. This operation
// requires the rights of an admin. The answer is 409 if the store is in PostgreSQL, where pg_dump makes
// backups.
func (a *API) backup(c *call, _ None) (*store.Backup, error) {
	return a.store.Backup(c.Context(), c.by)
}

// handleBackup is handle for an operation that answers with a database in place of JSON.
func handleBackup(a *API, method, path string, op func(*call, None) (*store.Backup, error)) route {
	serve := func(w http.ResponseWriter, r *http.Request) {
		copied, ok := run(a, w, r, op)
		if !ok {
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
