package aio

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
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
	_      uint64 // data
	_, _   uint32 // key, flags
	opcode uint16
	_      int16 // priority
	fd     uint32
	_      uint64 // buffer
	_      uint64 // bytes
	_      int64  // offset
	_      uint64
	notify uint32 // whether event is one
	event  uint32 // the eventfd
}

const notifyEvent = 1 // IOCB_FLAG_RESFD

// event is struct io_event.
type event struct {
	_, _   uint64 // data, object
	result int64
	_      int64
}

func (e *event) err() error {
	if e.result < 0 {
		return unix.Errno(-e.result)
	}
	return nil
}

// syncs has what syncs need that are under way, one each, for those that come after.
type syncs struct {
	idle chan *one
	off  atomic.Bool // the kernel does none
}

// maxIdle is more than a node does at a time.
const maxIdle = 16

func newSyncs() *syncs { return &syncs{idle: make(chan *one, maxIdle)} }

// do syncs a file, with plain if the kernel cannot begin to do it otherwise.
func (s *syncs) do(fd uintptr, what uint16, plain func() error) error {
	o := s.take()
	if o == nil {
		return plain()
	}
	if err := o.begin(fd, what); err != nil { // nothing has begun
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EBADF) {
			s.off.Store(true) // as before Linux 4.18, or on a file system that has none
		}
		s.give(o)
		return plain()
	}
	if err := o.wait(); err != nil {
		return fmt.Errorf("wait for a sync: %w", err)
	}
	err := o.events[0].err()
	s.give(o)
	return err
}

// take returns nil if the kernel does no such syncs: it or a sandbox refuses them, or fs.aio-max-nr is reached.
func (s *syncs) take() *one {
	if s.off.Load() {
		return nil
	}
	select {
	case o := <-s.idle:
		return o
	default:
	}
	o, err := newOne()
	if err != nil {
		s.off.Store(true)
		return nil
	}
	return o
}

func (s *syncs) give(o *one) {
	select {
	case s.idle <- o:
	default: // the garbage collector gives it back to the kernel
	}
}

// one is what one sync at a time needs of the kernel. It is all on the heap, where nothing moves: commands has an address.
type one struct {
	context  uintptr // aio_context_t
	event    *os.File
	ready    syscall.RawConn // of event
	command  command
	commands [1]*command
	events   [1]event
	now      unix.Timespec
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
	if err := o.event.SetReadDeadline(time.Time{}); err != nil { // the runtime cannot wait for it
		return nil, err
	}
	if o.ready, err = o.event.SyscallConn(); err != nil {
		return nil, err
	}
	if _, err := o.outcome(); err != nil { // better now than when there is one
		return nil, err
	}
	return o, nil
}

func (o *one) begin(fd uintptr, what uint16) error {
	o.command.opcode, o.command.fd = what, uint32(fd)
	if _, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, o.context, 1, uintptr(unsafe.Pointer(&o.commands[0]))); e != 0 {
		return os.NewSyscallError("io_submit", e)
	}
	return nil
}

// wait returns when the outcome of the sync that was begun is in events. The eventfd is never read: each outcome is an event
// of its own for the runtime, which asks for changes alone.
func (o *one) wait() error {
	var failed error
	err := o.ready.Read(func(uintptr) bool {
		var n uintptr
		n, failed = o.outcome()
		return n == 1 || failed != nil
	})
	return errors.Join(err, failed)
}

// outcome tells how many outcomes there are, none or one, which is in events then.
func (o *one) outcome() (uintptr, error) {
	for {
		n, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, o.context, 0, 1, uintptr(unsafe.Pointer(&o.events[0])), uintptr(unsafe.Pointer(&o.now)), 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return 0, os.NewSyscallError("io_getevents", e)
		}
		return n, nil
	}
}
