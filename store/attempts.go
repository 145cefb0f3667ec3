package store

import (
	"context"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// Attempt is a call of the admin API that was refused.
type Attempt struct {
	Operation string `json:"operation"` // "DELETE /service_users/{id}"
	Status    int    `json:"status"`
	Code      string `json:"code"`
	Login     string `json:"login,omitempty"`    // the login that a caller without an identity gave
	Of        string `json:"of,omitempty"`       // the id that the path has before that of the resource
	LeftOut   int64  `json:"left_out,omitempty"` // how many attempts before it were too many to record
}

// Anonymous is the name of an actor without a known identity.
const Anonymous = "anonymous"

// attempts limits how many refused attempts are recorded. Each known actor has its own bucket, so a
// flood of attempts by one actor does not hide those of another. Each service user has one more
// bucket, for strangers that name it as their login; all other strangers share a bucket. When there
// are too many buckets, further known actors share one, and further strangers use that of the other
// strangers. Known actors never share a bucket with strangers.
type attempts struct {
	mu               sync.Mutex
	known, strangers buckets
}

type buckets struct {
	byName map[string]*bucket
	full   time.Time // no bucket can be dropped before this time
}

type bucket struct {
	left    int
	refill  time.Time
	leftOut int64
}

// The largest numbers of buckets. maxStrangers also limits how many records strangers can cause:
// each bucket allows strangerShare.
const (
	maxKnown     = 10_000
	maxStrangers = 1000
)

// share is how many attempts of an actor are recorded in a period. The others are only counted.
type share struct {
	most int
	per  time.Duration
}

var (
	entitledShare = share{60, time.Minute} // admins and managers
	memberShare   = share{10, time.Minute} // known actors that are neither
	strangerShare = share{10, time.Hour}
)

func (a *attempts) admit(name string, of share, now time.Time) (leftOut int64, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list, most := &a.known, maxKnown
	if of == strangerShare {
		list, most = &a.strangers, maxStrangers
	}
	b := list.bucket(name, most, now)
	if !now.Before(b.refill) {
		b.left, b.refill = of.most, now.Add(of.per)
	}
	if b.left == 0 {
		b.leftOut++
		return 0, false
	}
	b.left--
	leftOut, b.leftOut = b.leftOut, 0
	return leftOut, true
}

// bucket returns the bucket of a name or, when there are too many buckets, the shared one.
func (l *buckets) bucket(name string, most int, now time.Time) *bucket {
	if l.byName == nil {
		l.byName = make(map[string]*bucket)
	}
	if l.byName[name] == nil && len(l.byName) >= most {
		if !now.Before(l.full) {
			// The scan for buckets to drop costs time proportional to their number. So
			// it is skipped until the first of them can be dropped, which is the
			// earliest refill.
			l.full = now.Add(strangerShare.per)
			maps.DeleteFunc(l.byName, func(_ string, b *bucket) bool {
				if now.Before(b.refill) && b.refill.Before(l.full) {
					l.full = b.refill
				}
				return !now.Before(b.refill)
			})
		}
		if len(l.byName) >= most {
			// No bucket could be dropped: this name shares the bucket "".
			name = ""
		}
	}
	if l.byName[name] == nil {
		l.byName[name] = new(bucket)
	}
	return l.byName[name]
}

// shareOf returns the bucket that an attempt counts in, and its size.
func (s *Store) shareOf(by Actor, login string) (name string, of share) {
	d := s.Directory()
	if by.Name == Anonymous {
		// User finds a service user by id or alias; attempts by either count in the same
		// bucket.
		if u, ok := d.User(login); ok {
			return u.ID, strangerShare
		}
		return "", strangerShare
	}
	if u, ok := d.User(by.Name); by.Scope != nil || ok && u.Role != access.Member {
		return by.Name, entitledShare
	}
	return by.Name, memberShare
}

// NoteAttempt adds a refused attempt on a resource, which may be "", to the audit trail. In a flood
// some attempts are left out; the next record contains their number. A read-only node logs it instead.
func (s *Store) NoteAttempt(ctx context.Context, by Actor, resource string, what Attempt) error {
	name, of := s.shareOf(by, what.Login)
	leftOut, ok := s.attempts.admit(name, of, s.Now())
	if !ok {
		return nil
	}
	what.LeftOut, what.Login = leftOut, access.MaskLogin(what.Login)
	// With a scope, renewScope would reject an actor that has just lost its rights, and its
	// attempt would not be recorded.
	by.Scope, by.Once = nil, nil
	if s.opts.ReadOnly {
		s.log.Info("refused; a read-only node cannot add it to the audit trail",
			zap.String("actor", access.MaskSecrets(by.Name)), zap.String("route", what.Operation),
			zap.String("resource", resource), zap.String("login", what.Login), zap.String("code", what.Code),
			zap.String("operation_id", by.Operation))
		return nil
	}
	return s.change(ctx, by, func(t *tx) error { return t.audit("refused", resource, nil, what) })
}
