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
	"reflect"
	"strconv"
	"strings"

	"github.com/serviceusers/caddy-service-users/store"
)

// DatabaseType is the Content-Type of a backup.
const DatabaseType = "application/vnd.sqlite3"

// maxBackup bounds a backup that is restored.
const maxBackup = 64 << 30

// StoreReport is what a check of the store has found.
type StoreReport struct {
	OK           bool             `json:"ok"`            // there is no finding
	Schema       int              `json:"schema"`        // the version of the schema
	Revision     int64            `json:"revision"`      // the number of the last change
	ServiceUsers int64            `json:"service_users"` // how many there are
	Head         string           `json:"head"`          // the last record of the audit trail, SEQ:HASH
	Tables       map[string]int64 `json:"tables"`        // how many rows each has
	Findings     []string         `json:"findings"`      // damage, and what to do about it; then values that could be written once and cannot be today, which a restore takes
}

// ShowReport brings a report into the form of the API.
func ShowReport(r store.CheckReport) StoreReport {
	findings := append(append([]string{}, r.Findings...), r.Notes...)
	out := StoreReport{len(findings) == 0, r.Schema, r.Revision, r.ServiceUsers, r.Head.String(), r.Tables, findings}
	if out.Tables == nil {
		out.Tables = map[string]int64{}
	}
	return out
}

// check looks at everything in the store: that its pages and indexes are whole, that
// every row leads somewhere and can be enforced, and that the audit trail has its
// chain. It is for admins.
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

// RestoreReport says what a restore has replaced.
type RestoreReport struct {
	Revision       int64  `json:"revision"`        // in force now
	ServiceUsers   int64  `json:"service_users"`   // in force now
	Head           string `json:"head"`            // the last record of the audit trail, SEQ:HASH
	BackupRevision int64  `json:"backup_revision"` // the revision of the backup
	RevisionBefore int64  `json:"revision_before"` // what was in force before
	LostChanges    int64  `json:"lost_changes"`    // changes since the backup, which hold no longer
	RevivedTokens  int64  `json:"revived_tokens"`  // tokens that were revoked or deleted since the backup, and are valid again
}

// ShowRestored brings the outcome of a restore into the form of the API.
func ShowRestored(r store.Restored) RestoreReport {
	return RestoreReport{r.After.Revision, r.After.ServiceUsers, r.After.Head.String(), r.Backup.Revision, r.Before.Revision, r.Lost, r.Revived}
}

// restore replaces what the store holds by a backup, in one transaction. The backup
// is checked first, and the directory built: one that is damaged, of a newer version
// or of another store is refused, and nothing changes. It is for the local door.
func (a *API) restore(c *call, backup upload) (RestoreReport, error) {
	if c.by.Name != store.Local.Name || c.by.Scope != nil {
		return RestoreReport{}, NewError(http.StatusForbidden, "ERR_NGROK_4111", "the store is restored at the local door only, since that brings back what was revoked; do it on the machine itself")
	}
	r, err := a.store.Restore(c.Context(), c.by, backup)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return RestoreReport{}, NewError(http.StatusRequestEntityTooLarge, "ERR_BODY_TOO_LARGE", fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit))
	case err != nil:
		return RestoreReport{}, err
	}
	return ShowRestored(r), nil
}

// upload is a body that is a database.
type upload struct{ io.Reader }

// open checks what is said about the body; the body itself is read later.
func (u *upload) open(w http.ResponseWriter, r *http.Request) error {
	switch r.Header.Get("Content-Type") {
	case DatabaseType:
	case "":
		return NewError(http.StatusUnsupportedMediaType, "ERR_NGROK_216", "the Content-Type is missing; it must be "+DatabaseType)
	default:
		return NewError(http.StatusUnsupportedMediaType, "ERR_NGROK_210", "the Content-Type must be "+DatabaseType)
	}
	want, told, err := readDigest(r.Header)
	if err != nil {
		return NewError(http.StatusBadRequest, "ERR_DIGEST", err.Error())
	}
	u.Reader = http.MaxBytesReader(w, r.Body, maxBackup)
	if told {
		digest := sha256.New()
		u.Reader = &verified{io.TeeReader(u.Reader, digest), func() []byte { return digest.Sum(nil) }, want}
	}
	return nil
}

// backup copies the store as it is at one revision, while it goes on, and answers
// with the copy: a SQLite database in one file. It holds the hashes of all tokens. It
// is for admins.
func (a *API) backup(c *call, _ None) (*store.Backup, error) {
	return a.store.Backup(c.Context(), c.by)
}

// handleBackup is handle for an answer that is a database.
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
		_, _ = io.Copy(w, copied) // the client may be gone, and sees the length and the digest
	}
	return route{method: method, path: path, status: http.StatusOK, serve: serve, op: op, in: reflect.TypeFor[None](), out: reflect.TypeFor[string](), kind: DatabaseType}
}

// reprDigest writes a digest as RFC 9530 has it.
func reprDigest(sum []byte) string {
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum) + ":"
}

// readDigest reads the SHA-256 among the digests of a message.
func readDigest(h http.Header) (sum []byte, told bool, err error) {
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

// verified reads a body to its end and then says whether it was the one that was
// meant.
type verified struct {
	io.Reader
	sum  func() []byte // of what was read
	want []byte
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.Reader.Read(p)
	if err == io.EOF && !bytes.Equal(v.sum(), v.want) {
		err = NewError(http.StatusBadRequest, "ERR_DIGEST", "the body is not the one that Repr-Digest tells of; send it again")
	}
	return n, err
}

// Backup has the store copied and writes the copy to w. It returns an error unless
// all of it came.
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
	want, told, err := readDigest(resp.Header)
	if err != nil || !told {
		return 0, nil, &UnreachableError{c.Base, errors.New("answered without a digest, not as the service-user API does")}
	}
	digest := sha256.New()
	size, err = io.Copy(io.MultiWriter(w, digest), resp.Body)
	if err != nil {
		return size, nil, fmt.Errorf("receiving the backup: %w", err)
	}
	if sum = digest.Sum(nil); !bytes.Equal(sum, want) {
		return size, nil, errors.New("receiving the backup: it is not the one that was sent; try again")
	}
	return size, sum, nil
}

// Restore sends a backup, of which the size and the SHA-256 are known.
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
