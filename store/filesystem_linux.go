package store

import (
	"fmt"
	"path/filepath"
	"syscall"
)

// unsafeFileSystems has the file systems that can damage or lose a database, by their magic number
// in statfs(2), each with the reason.
var unsafeFileSystems = map[uint32]string{
	0x6969:     "NFS: locks and the shared index of the log do not work over a network",
	0x517b:     "SMB: locks and the shared index of the log do not work over a network",
	0xff534d42: "CIFS: locks and the shared index of the log do not work over a network",
	0xfe534d42: "SMB2: locks and the shared index of the log do not work over a network",
	0x00c36400: "Ceph: locks and the shared index of the log do not work over a network",
	0x01021997: "9P: locks and the shared index of the log do not work over a network",
	0x5346414f: "AFS: locks and the shared index of the log do not work over a network",
	0x47504653: "GPFS: locks and the shared index of the log do not work over a network",
	0x0bd00bd0: "Lustre: locks and the shared index of the log do not work over a network",
	0x794c7630: "overlay: the layer of a container is deleted with the container; put the store on a volume",
	0x01021994: "tmpfs: files in memory are lost at the next start of the machine",
	0x858458f6: "ramfs: files in memory are lost at the next start of the machine",
}

// StorageWarnings lists reasons why the place of a store is unsafe, such as its file system or a
// hard link. An error means that the place could not be examined.
func StorageWarnings(path string) (warnings []string, err error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(path), &fs); err != nil {
		return nil, fmt.Errorf("looking at the file system: %w", err)
	}
	if reason := unsafeFileSystems[uint32(fs.Type)]; reason != "" {
		warnings = append(warnings, reason)
	}
	var file syscall.Stat_t
	if err := syscall.Stat(path, &file); err != nil {
		return warnings, fmt.Errorf("looking at the file: %w", err)
	}
	if file.Nlink > 1 {
		// SQLite derives the name of the log from the name of the database.
		warnings = append(warnings,
			"the file has another name (a hard link): a program that opens it by that name "+
				"writes a separate log, and changes are lost; remove one of the names")
	}
	return warnings, nil
}
