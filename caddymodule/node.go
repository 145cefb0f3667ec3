package caddymodule

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"os"
	"path/filepath"
	"regexp"

	"github.com/caddyserver/caddy/v2"
	"github.com/segmentio/ksuid"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/internal/filelock"
)

var nodeForm = regexp.MustCompile(`^node_[0-9A-Za-z]{27}$`)

// nodeID returns the id of this node. A file in Caddy's data directory keeps it, so that a process after a
// crash is the same node. The name of the file has that of the machine, since machines can share the
// directory or copy it. No other store uses the id until the file is closed. Without a file, the id is ""
// and the store makes a new one.
func nodeID(machine string, log *zap.Logger) (id string, file *os.File) {
	path := filepath.Join(caddy.AppDataDir(), "service_users.node."+url.PathEscape(machine))
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err == nil {
		if err := filelock.Lock(file); err != nil {
			file.Close()
			log.Info("the id of this node is in use by another process, or by the store before a reload; "+
				"this store gets a new id", zap.String("path", path), zap.Error(err))
			return "", nil
		}
		text := make([]byte, len("node_")+27)
		if n, _ := file.ReadAt(text, 0); nodeForm.Match(text[:n]) { // a crash can leave a part
			return string(text), file
		}
		id = "node_" + ksuid.New().String()
		if _, err = file.WriteAt([]byte(id), 0); err == nil {
			return id, file
		}
		file.Close()
	}
	log.Warn("the id of this node cannot be kept, so each start is a new node, and after a crash receipts "+
		"name the one before as late until its max_staleness is over; make the directory writable",
		zap.String("path", path), zap.Error(err))
	return "", nil
}

// copyDir returns the folder for the last good copy that a machine keeps of a store. shown is the place without
// its password, so a new password leaves the copy in use.
func copyDir(machine, shown string) string {
	sum := sha256.Sum256([]byte(shown))
	return filepath.Join(caddy.AppDataDir(), "service_users.copy."+url.PathEscape(machine), hex.EncodeToString(sum[:8]))
}
