package store

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// Place is a place in a sorted list: the sort key of a row, a zero byte and the id of the row. Places
// are in the order of the list if their bytes are.
type Place string

// PlaceOf returns the place of a row.
func PlaceOf(key, id string) Place { return Place(key + "\x00" + id) }

// ID returns the id of the row.
func (p Place) ID() string { return string(p[strings.LastIndexByte(string(p), 0)+1:]) }

// number returns the first part of the key, if appendNumber has made it.
func (p Place) number() int64 {
	var key [8]byte
	copy(key[:], p) // a client may have cut it
	return int64(binary.BigEndian.Uint64(key[:]))
}

func appendNumber(key []byte, n int64) []byte { return binary.BigEndian.AppendUint64(key, uint64(n)) }

// SoonEnding is the time before the end of a token from which the order "usable" puts its service
// user first.
const SoonEnding = 14 * 24 * time.Hour

// UserSorts has the fields that service users can be sorted by, each with a function that appends
// its key at an instant (Unix seconds). Service users with the same key are in the order of their
// ids, which is that of their creation.
var UserSorts = map[string]func(key []byte, k *access.Sketch, now int64) []byte{
	"created_at":     func(key []byte, _ *access.Sketch, _ int64) []byte { return key },
	"last_active_at": func(key []byte, k *access.Sketch, _ int64) []byte { return appendNumber(key, k.LastActiveAt) },
	"name":           func(key []byte, k *access.Sketch, _ int64) []byte { return append(key, k.Name...) },
	"display_name":   func(key []byte, k *access.Sketch, _ int64) []byte { return append(key, k.DisplayName...) },
	"teams":          func(key []byte, k *access.Sketch, _ int64) []byte { return joined(key, k.Teams) },
	"next_token_end": func(key []byte, k *access.Sketch, _ int64) []byte { return appendNumber(key, k.NextEnd) },
	"role": func(key []byte, k *access.Sketch, _ int64) []byte {
		return append(key, k.Role...) // the names of the roles are in the order of their rights
	},
	"status": func(key []byte, k *access.Sketch, now int64) []byte {
		return append(key, byte(slices.Index(UserStatuses, status(k, now))))
	},
	// choose turns this order around: the highest key is first, and then the newest service
	// user.
	"usable": func(key []byte, k *access.Sketch, now int64) []byte {
		switch {
		case !k.Usable:
			return append(key, 0)
		case k.NextEnd == 0 || k.NextEnd > now+int64(SoonEnding/time.Second):
			return append(key, 1)
		}
		return append(key, 2)
	},
}

// UserStatuses are the statuses of a service user. One that is inactive and has expired is inactive.
var UserStatuses = []string{"active", "expired", "inactive"}

// status returns the status of a service user at an instant (Unix seconds).
func status(k *access.Sketch, now int64) string {
	switch {
	case !k.Active:
		return "inactive"
	case expired(k, now):
		return "expired"
	}
	return "active"
}

// joined appends texts, each before a zero byte.
func joined(key []byte, texts [][]byte) []byte {
	for _, text := range texts {
		key = append(append(key, text...), 0)
	}
	return key
}

// firstPlaces collects places in any order and keeps the first ones of an order.
type firstPlaces struct {
	most  int
	down  bool
	after Place // only places behind this one; "" is all
	list  []Place
	last  Place // places behind it are not among the first; "" is unknown
}

func (f *firstPlaces) add(place []byte) {
	if f.after != "" && !f.behind(place, f.after) || f.last != "" && f.behind(place, f.last) {
		return
	}
	f.list = append(f.list, Place(place))
	if len(f.list) == 2*f.most {
		f.last = f.cut()[f.most-1]
	}
}

func (f *firstPlaces) behind(place []byte, other Place) bool {
	if f.down {
		return string(place) < string(other)
	}
	return string(place) > string(other)
}

// cut returns the first places in their order, and forgets the others.
func (f *firstPlaces) cut() []Place {
	slices.Sort(f.list)
	if f.down {
		slices.Reverse(f.list)
	}
	f.list = f.list[:min(len(f.list), f.most)]
	return f.list
}
