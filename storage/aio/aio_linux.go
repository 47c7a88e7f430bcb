package aio

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What to sync: the commands of linux/aio_abi.h.
const (
	all  = 2 // IOCB_CMD_FSYNC
	data = 3 // IOCB_CMD_FDSYNC
)

// command is struct iocb of linux/aio_abi.h; key and flags, both 0 here, change places on big-endian machines.
type command struct {
	data     uint64
	key      uint32
	flags    uint32
	opcode   uint16
	priority int16
	fd       uint32
	buf      uint64
	bytes    uint64
	offset   int64
	_        uint64
	notify   uint32 // whether event is one
	event    uint32 // the eventfd
}

const notifyEvent = 1 // IOCB_FLAG_RESFD

// event is struct io_event.
type event struct {
	data, object uint64
	result, _    int64
}

func (e *event) err() error {
	if e.result < 0 {
		return unix.Errno(-e.result)
	}
	return nil
}

// syncs has what syncs need that are under way, one each, for those that come after.
type syncs struct{ idle sync.Pool }

func newSyncs() *syncs { return &syncs{} }

// one is what one sync at a time needs of the kernel. The garbage collector gives it back.
type one struct {
	context uintptr // aio_context_t
	event   *os.File
	// The kernel reads and writes these while nobody may move them, which is why they are here.
	command  command
	commands [1]*command
	events   [1]event
	count    [8]byte
}

func newOne() (*one, error) {
	o := &one{}
	if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&o.context)), 0); e != 0 {
		return nil, os.NewSyscallError("io_setup", e)
	}
	runtime.AddCleanup(o, func(context uintptr) { _, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, context, 0, 0) }, o.context)
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	o.event = os.NewFile(uintptr(fd), "eventfd") // closed with o, by its own cleanup
	o.command.notify, o.command.event = notifyEvent, uint32(fd)
	o.commands[0] = &o.command
	return o, nil
}

// do syncs a file, with plain if the kernel cannot begin to do it otherwise.
func (s *syncs) do(fd uintptr, what uint16, plain func() error) error {
	o, _ := s.idle.Get().(*one)
	if o == nil {
		var err error
		if o, err = newOne(); err != nil { // refused, as in some sandboxes, or there are too many
			return plain()
		}
	}
	o.command.opcode, o.command.fd = what, uint32(fd)
	if _, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, o.context, 1, uintptr(unsafe.Pointer(&o.commands[0]))); e != 0 {
		return plain() // nothing has begun
	}
	if err := o.wait(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	s.idle.Put(o)
	return nil
}

// wait returns the outcome of the sync that was begun.
func (o *one) wait() error {
	if _, err := o.event.Read(o.count[:]); err != nil {
		return err
	}
	for {
		n, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, o.context, 1, 1, uintptr(unsafe.Pointer(&o.events[0])), 0, 0)
		switch {
		case e == unix.EINTR:
			continue
		case e != 0:
			return os.NewSyscallError("io_getevents", e)
		case n != 1:
			return errors.New("io_getevents: no outcome")
		}
		return o.events[0].err()
	}
}
