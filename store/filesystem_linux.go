package store

import (
	"fmt"
	"path/filepath"
	"syscall"
)

// Magic numbers of file systems (statfs(2)) that do a database no good.
var doubtful = map[uint32]string{
	0x6969:     "NFS: locks and the shared index of the log do not work over a network",
	0x517b:     "SMB: locks and the shared index of the log do not work over a network",
	0xff534d42: "CIFS: locks and the shared index of the log do not work over a network",
	0xfe534d42: "SMB2: locks and the shared index of the log do not work over a network",
	0x00c36400: "Ceph: locks and the shared index of the log do not work over a network",
	0x01021997: "9P: locks and the shared index of the log do not work over a network",
	0x5346414f: "AFS: locks and the shared index of the log do not work over a network",
	0x47504653: "GPFS: locks and the shared index of the log do not work over a network",
	0x0bd00bd0: "Lustre: locks and the shared index of the log do not work over a network",
	0x794c7630: "overlay: the layer of a container is gone with it; put the store on a volume",
	0x01021994: "tmpfs: what is in memory is gone with the next start of the machine",
	0x858458f6: "ramfs: what is in memory is gone with the next start of the machine",
}

// Doubts says why a store is in no good place.
func Doubts(path string) (doubts []string, err error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(path), &fs); err != nil {
		return nil, fmt.Errorf("looking at the file system: %w", err)
	}
	if doubt := doubtful[uint32(fs.Type)]; doubt != "" {
		doubts = append(doubts, doubt)
	}
	var file syscall.Stat_t
	if err := syscall.Stat(path, &file); err != nil {
		return doubts, fmt.Errorf("looking at the file: %w", err)
	}
	if file.Nlink > 1 {
		doubts = append(doubts, "the file has another name (a hard link): who opens it by that has a log of its own, and changes are lost; remove one of the names")
	}
	return doubts, nil
}
