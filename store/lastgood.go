package store

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/serviceusers/caddy-service-users/access"
)

// The last good copy of a node is the directory that it has loaded, in two files:
//
//	NAME.log   the whole directory in parts, and then each change of it
//	copy.json  the head: the name of the log, and how far it went when the database last took a report
//
// The log is a row of frames. A frame is its length (4 bytes), a text (a kind and a gob of copyFrame), and the
// SHA-256 of the hash of the frame before it and the text. So a log that was changed, or cut before the length
// in the head, is not accepted. Frames behind that length are accepted as far as they are whole.

// copyFormat is the version of the format, and of the types in it.
const copyFormat = 1

// The kinds of frames.
const (
	framePart   = 'p' // a part of the directory at one position; the first one has all groups
	frameChange = 'c' // the changes that lead to a position
)

type copyFrame struct {
	Revision, Seq int64
	Hash          string
	Users         int64    // in the first part: how many follow
	Peppers       []string // in the first part: the ids of those that were configured
	Changes       access.Changes
}

const copyHeadName = "copy.json"

// copyHead says which part of a log the node may answer from.
type copyHead struct {
	Format       int           `json:"format"`
	Store        string        `json:"store"`        // the id of the store
	URL          string        `json:"url"`          // without the password
	Log          string        `json:"log"`          // the name of the file
	Size         int64         `json:"size"`         // of the log, in bytes
	Digest       string        `json:"digest"`       // of the last frame
	Revision     int64         `json:"revision"`     // of the last frame
	Acknowledged moment        `json:"acknowledged"` // of the last look that the database knows of
	MaxStaleness time.Duration `json:"max_staleness"`
	Sum          string        `json:"sum"` // SHA-256 of the head without it
}

func (h copyHead) sum() string {
	h.Sum = ""
	sum := sha256.Sum256([]byte(toJSON(h)))
	return hex.EncodeToString(sum[:])
}

// copyLog is a log that is open for appending.
type copyLog struct {
	file       *os.File
	size, base int64 // in bytes; of the whole, and of the parts of the directory
	chain      [sha256.Size]byte
	at         position
}

// append writes a frame. After an error the log has at most a part of it.
func (l *copyLog) append(kind byte, at position, f copyFrame) error {
	f.Revision, f.Seq, f.Hash = at.revision, at.seq, at.hash
	var b bytes.Buffer
	b.Write(make([]byte, 4))
	b.WriteByte(kind)
	if err := gob.NewEncoder(&b).Encode(f); err != nil {
		return err
	}
	text := b.Bytes()[4:]
	binary.BigEndian.PutUint32(b.Bytes(), uint32(len(text)))
	chain := nextHash(l.chain, text)
	b.Write(chain[:])
	if _, err := l.file.Write(b.Bytes()); err != nil {
		return err
	}
	l.size, l.chain, l.at = l.size+int64(b.Len()), chain, at
	return nil
}

func nextHash(before [sha256.Size]byte, text []byte) (next [sha256.Size]byte) {
	h := sha256.New()
	h.Write(before[:])
	h.Write(text)
	return [sha256.Size]byte(h.Sum(next[:0]))
}

// remove closes and removes the log.
func (l *copyLog) remove() error {
	if l == nil {
		return nil
	}
	l.file.Close()
	return os.Remove(l.file.Name())
}

// writeCopyLog makes a log of a directory in a new file. It fails when over is closed.
func writeCopyLog(dir string, at *loaded, peppers []string, over <-chan struct{}) (l *copyLog, err error) {
	file, err := os.OpenFile(filepath.Join(dir, rand.Text()+".log"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	l = &copyLog{file: file}
	defer func() {
		if err != nil {
			l.remove()
		}
	}()
	d := at.directory
	first := copyFrame{Users: int64(d.Len()), Peppers: peppers}
	for _, g := range d.Groups() {
		first.Changes.Groups = append(first.Changes.Groups, *g)
	}
	err = l.append(framePart, at.position, first)
	part := copyFrame{Changes: access.Changes{Users: make([]access.User, 0, usersAtOnce)}}
	write := func() {
		select {
		case <-over:
			err = cmp.Or(err, errors.New("the store is closing"))
		default:
		}
		if err == nil {
			err = l.append(framePart, at.position, part)
		}
		part.Changes.Users = part.Changes.Users[:0]
	}
	d.Export(func(u *access.User) {
		if part.Changes.Users = append(part.Changes.Users, *u); len(part.Changes.Users) == usersAtOnce {
			write()
		}
	})
	write()
	if l.base = l.size; err == nil {
		err = file.Sync()
	}
	return l, err
}

// writeCopyHead replaces the head in one step.
func writeCopyHead(dir string, h copyHead) error {
	h.Format, h.Sum = copyFormat, ""
	h.Sum = h.sum()
	return replaceFile(filepath.Join(dir, copyHeadName), ".copy-*", []byte(toJSON(h)), nil)
}

// readCopyHead returns the head in dir. The error is fs.ErrNotExist if there is none.
func readCopyHead(dir, url string) (h copyHead, err error) {
	text, err := os.ReadFile(filepath.Join(dir, copyHeadName))
	if err != nil {
		return h, err
	}
	err = json.Unmarshal(text, &h)
	switch {
	case err == nil && h.Format != copyFormat: // a newer head may have other fields
		err = fmt.Errorf("it has the format %d of another version of the program, and this one has %d", h.Format, copyFormat)
	case err != nil || h.Sum != h.sum() || h.Log != filepath.Base(h.Log):
		err = fmt.Errorf("%w: its head is not what was written", ErrDamaged)
	case h.URL != url:
		err = fmt.Errorf("it is of another store, %s", h.URL)
	}
	return h, err
}

// readCopy reads the log of a head, and opens it for appending.
func readCopy(dir string, h copyHead, opts Options) (held *loaded, l *copyLog, err error) {
	file, err := os.OpenFile(filepath.Join(dir, h.Log), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: its log is missing", ErrDamaged)
	}
	if err != nil {
		return nil, nil, err
	}
	l = &copyLog{file: file}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	r := copyReader{in: file, log: l, peppers: opts.Peppers.IDs()}
	if r.left, err = file.Seek(0, io.SeekEnd); err != nil {
		return nil, nil, err
	}
	if _, err = file.Seek(0, io.SeekStart); err != nil {
		return nil, nil, err
	}
	d, err := r.directory(h, access.NewDirectory(opts.Peppers, opts.DefaultGroup))
	if err != nil {
		return nil, nil, err
	}
	// A frame that the process could not finish is behind the last whole one.
	if err = file.Truncate(l.size); err == nil {
		_, err = file.Seek(l.size, io.SeekStart)
	}
	return &loaded{position: l.at, directory: d}, l, err
}

// copyReader reads the frames of a log.
type copyReader struct {
	in   io.Reader
	left int64 // bytes of the file that are not read yet
	log  *copyLog

	peppers []string // the ids of those that are configured
	more    bool     // the log was made without one of them
}

// next returns the text of the next frame, or nil if there is no other whole one.
func (r *copyReader) next() ([]byte, error) {
	var head [4]byte
	if r.left < int64(len(head)) {
		return nil, nil
	}
	if _, err := io.ReadFull(r.in, head[:]); err != nil {
		return nil, err
	}
	n := int64(binary.BigEndian.Uint32(head[:])) + sha256.Size
	if r.left -= int64(len(head)); n > r.left {
		return nil, nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.in, b); err != nil {
		return nil, err
	}
	r.left -= n
	text := b[:n-sha256.Size]
	chain := nextHash(r.log.chain, text)
	if len(text) == 0 || !bytes.Equal(chain[:], b[n-sha256.Size:]) {
		return nil, nil
	}
	r.log.size, r.log.chain = r.log.size+int64(len(head))+n, chain
	return text, nil
}

// directory builds the directory of the log. Parts are decoded at the same time.
func (r *copyReader) directory(h copyHead, d *access.Directory) (*access.Directory, error) {
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	defer group.Wait() // also after an error
	var edit *access.Edit
	done := func() (err error) {
		if edit == nil {
			return nil
		}
		if err = group.Wait(); err == nil {
			d, err = edit.Done()
			edit, r.log.base = nil, r.log.size
		}
		return err
	}
	reached := false // the frame that the head names
	for {
		base := r.log.size
		text, err := r.next()
		if err != nil || text == nil {
			err = cmp.Or(err, done())
			if err == nil && !reached {
				err = fmt.Errorf("%w: byte %d of its log, and what follows, is not what was written", ErrDamaged, base)
			}
			return d, err
		}
		reached = reached || r.log.size == h.Size && hex.EncodeToString(r.log.chain[:]) == h.Digest
		var f copyFrame
		switch kind := text[0]; {
		case kind == framePart && edit != nil:
			edit := edit
			group.Go(func() error {
				var f copyFrame
				err := decodeFrame(text, &f)
				if err == nil && r.more && slices.ContainsFunc(f.Changes.Users, hasLostPepper) {
					err = errors.New("it has tokens whose pepper is configured now, and was not when the copy was made")
				}
				if err == nil {
					err = edit.Users(f.Changes.Users, nil)
				}
				return err
			})
			continue
		case kind == framePart:
			if err = decodeFrame(text, &f); err == nil {
				edit, err = d.Edit(f.Revision)
				r.more = slices.ContainsFunc(r.peppers, func(id string) bool { return !slices.Contains(f.Peppers, id) })
			}
			if err == nil {
				err = edit.Groups(f.Changes.Groups, nil)
				edit.Expect(f.Users, f.Users)
			}
		default:
			if err = decodeFrame(text, &f); err == nil {
				err = done()
			}
			if err == nil {
				d, err = d.With(f.Changes)
			}
		}
		if err != nil {
			return nil, err
		}
		r.log.at = position{f.Revision, f.Seq, f.Hash}
	}
}

func hasLostPepper(u access.User) bool {
	return slices.ContainsFunc(u.Tokens, func(t access.Token) bool { return t.Pepper == access.LostPepper })
}

func decodeFrame(text []byte, f *copyFrame) error {
	return gob.NewDecoder(bytes.NewReader(text[1:])).Decode(f)
}
