package chaos

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// diskBytes is the size of a node's own file system. Most of it stays a hole in the image.
const diskBytes = 768 << 20

// missingForDisks tells why nodes cannot have file systems of their own here, nil if they can.
func missingForDisks() error {
	if os.Geteuid() != 0 {
		return errors.New("file systems of their own for nodes need root")
	}
	for _, program := range []string{"mkfs.ext4", "mount", "umount", "fsfreeze"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("file systems of their own for nodes need the program %s", program)
		}
	}
	dir, err := os.MkdirTemp("", "holdfast-chaos-disk-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	d, err := newDisk(dir) // the kernel may have no loop devices
	if err != nil {
		return err
	}
	return d.close()
}

// disk is a small ext4 on a loop device, which can be full and can hang.
type disk struct {
	image, dir string
	frozen     bool
}

// newDisk mounts a new file system below dir.
func newDisk(dir string) (*disk, error) {
	d := &disk{image: filepath.Join(dir, "disk.img"), dir: filepath.Join(dir, "disk")}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(diskBytes), f.Close()); err != nil {
		return nil, err
	}
	if err := shell("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", d.image); err != nil {
		return nil, err
	}
	return d, shell("mount", "-o", "loop", d.image, d.dir)
}

func (d *disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill takes all the room that is left.
func (d *disk) fill() error {
	f, err := os.Create(d.ballast())
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for size := len(block); size >= 4096; {
		if _, err := f.Write(block[:size]); err != nil {
			size /= 2
		}
	}
	return nil // the nodes may have been faster with the last block
}

// free gives the room back.
func (d *disk) free() error { return os.Remove(d.ballast()) }

// freeze lets every write wait until thaw.
func (d *disk) freeze() error {
	d.frozen = true
	return shell("fsfreeze", "--freeze", d.dir)
}

func (d *disk) thaw() error {
	if !d.frozen {
		return nil
	}
	d.frozen = false
	return shell("fsfreeze", "--unfreeze", d.dir)
}

func (d *disk) close() error {
	return errors.Join(d.thaw(), shell("umount", d.dir), os.Remove(d.image))
}
