package admin

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// tagged is an answer about one resource that has a version. Answers with a list are not tagged.
type tagged interface{ etag() string }

func (u ServiceUser) etag() string { return u.ETag }
func (t Token) etag() string       { return t.ETag }
func (g Group) etag() string       { return g.ETag }
func (k APIKey) etag() string      { return k.ETag }

// notModified reports whether the header If-None-Match has the tag of an answer, or "*". The
// comparison is weak (RFC 9110, section 13.1.2).
func notModified(r *http.Request, tag string) bool {
	values := strings.Join(r.Header.Values("If-None-Match"), ",")
	return values == "*" || slices.ContainsFunc(strings.Split(values, ","), func(one string) bool {
		return strings.TrimPrefix(strings.TrimSpace(one), "W/") == tag // no tag of ours has a comma in it
	})
}

// ifMatch returns the version in the header If-Match, or 0 if every version is right.
func (c *call) ifMatch() (int64, error) {
	values := c.Header.Values("If-Match")
	value := strings.Join(values, ", ")
	switch {
	case len(values) == 0 || value == "*":
		return 0, nil
	case !c.route.versioned: // an If-Match that no code compares would give a false sense of safety
		return 0, NewError(http.StatusPreconditionFailed, "ERR_CHANGED",
			"this operation compares no versions; leave If-Match out")
	}
	// Only the exact form of etag is accepted: no weak tag (W/), no list and no leading zero.
	version, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 64)
	if err != nil || version < 1 || value != etag(version) {
		return 0, NewError(http.StatusPreconditionFailed, "ERR_CHANGED",
			"If-Match must be the ETag of an earlier answer, in its quotes")
	}
	return version, nil
}

func etag(version int64) string { return strconv.Quote(strconv.FormatInt(version, 10)) }
