//! The queue of a device: its requests, and the commands that fetch and answer them.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use crate::error::UblkError;
use crate::uapi::{self, IoCmd, IoDesc};

/// Result of a tag that is not served any more.
pub const ABORTED: i32 = -libc::ENODEV;

/// How long the node of a new queue may take to appear, where something else than the kernel makes it.
const NODE_PATIENCE: Duration = Duration::from_secs(5);
const NODE_TICK: Duration = Duration::from_millis(10);

/// A command for the ring that serves the queue: the number, and 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// What an entry calls `cmd_op`.
    pub op: u32,
    /// What an entry calls `cmd`.
    pub bytes: [u8; 16],
}

fn command(op: u32, tag: u16, result: i32) -> Command {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(IoCmd { queue: 0, tag, result, addr: 0 }.as_bytes());
    Command { op, bytes }
}

/// Asks for the first request of a tag. It completes with 0 when there is one.
#[must_use]
pub fn fetch(tag: u16) -> Command {
    command(uapi::FETCH_REQ, tag, 0)
}

/// Answers the request of a tag, with the number of bytes or a negative errno, and asks for the next one.
#[must_use]
pub fn commit(tag: u16, result: i32) -> Command {
    command(uapi::COMMIT_AND_FETCH_REQ, tag, result)
}

/// Where the data of a tag's request begins in the queue's file.
#[must_use]
pub const fn data_offset(tag: u16) -> u64 {
    uapi::IO_BUF_OFFSET + ((tag as u64) << uapi::TAG_SHIFT)
}

/// What a request is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fill it.
    Read,
    /// Store it.
    Write,
    /// Make everything that was answered stable.
    Flush,
    /// The content is of no use any more.
    Discard,
    /// Make it zero.
    WriteZeroes,
    /// Something that was not offered.
    Unknown(u8),
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub op: Operation,
    /// First sector.
    pub sector: u64,
    /// Sectors of 512 bytes.
    pub sectors: u32,
    /// Answer when it is stable.
    pub fua: bool,
    /// Zeroes have to be allocated.
    pub no_unmap: bool,
}

impl From<IoDesc> for Request {
    fn from(desc: IoDesc) -> Request {
        let op = match desc.op_flags & 0xff {
            uapi::OP_READ => Operation::Read,
            uapi::OP_WRITE => Operation::Write,
            uapi::OP_FLUSH => Operation::Flush,
            uapi::OP_DISCARD => Operation::Discard,
            uapi::OP_WRITE_ZEROES => Operation::WriteZeroes,
            other => Operation::Unknown(other as u8),
        };
        Request {
            op,
            sector: desc.sector,
            sectors: desc.sectors,
            fua: desc.op_flags & uapi::IO_FUA != 0,
            no_unmap: desc.op_flags & uapi::IO_NO_UNMAP != 0,
        }
    }
}

/// The open queue of a device.
#[derive(Debug)]
pub struct Queue {
    /// The descriptors, written by the driver.
    descs: NonNull<IoDesc>,
    mapped: usize,
    file: File,
    device: u32,
    depth: u16,
}

// SAFETY: the mapping is not bound to a thread, and `&mut self` or ownership is all that a thread can have of it.
unsafe impl Send for Queue {}

impl Queue {
    /// Opens the queue of a device that has this depth. Only one process can, once.
    ///
    /// # Errors
    /// It is open already, or does not appear.
    pub fn open(device: u32, depth: u16) -> Result<Queue, UblkError> {
        let failed = |error| UblkError::Queue { device, error };
        let path = format!("/dev/ublkc{device}");
        let end = Instant::now() + NODE_PATIENCE;
        let file = loop {
            match File::options().read(true).write(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < end => {
                    thread::sleep(NODE_TICK);
                }
                done => break done.map_err(failed)?,
            }
        };
        Queue::of(file, device, depth).map_err(failed)
    }

    /// The queue of a file that shows descriptors as the driver does: the character device of a device.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn of(file: File, device: u32, depth: u16) -> io::Result<Queue> {
        let page = 4096;
        let mapped = (usize::from(depth) * size_of::<IoDesc>()).next_multiple_of(page);
        // SAFETY: a new mapping at an address of the kernel's choice, of a file that is open.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let descs = NonNull::new(at.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Queue { descs, mapped, file, device, depth })
    }

    /// Number of the device.
    #[must_use]
    pub fn device(&self) -> u32 {
        self.device
    }

    /// Number of tags.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// The request of a tag whose last command completed with 0.
    ///
    /// # Panics
    /// There is no such tag.
    #[must_use]
    pub fn request(&self, tag: u16) -> Request {
        assert!(tag < self.depth, "tag {tag} of {}", self.depth);
        // SAFETY: the mapping holds `depth` descriptors; the driver wrote this one before it completed the command.
        let desc = unsafe { self.descs.add(usize::from(tag)).read_volatile() };
        desc.into()
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the mapping came from `open`, and no reference into it was given out.
        let result = unsafe { libc::munmap(self.descs.as_ptr().cast(), self.mapped) };
        assert_eq!(result, 0, "munmap of a queue's descriptors");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ublk_commands_of_a_queue_name_tag_and_result() {
        assert_eq!(fetch(7).bytes, [0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let failed = commit(258, -5);
        assert_eq!(failed.bytes, [0, 0, 2, 1, 0xfb, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_ne!(fetch(7).op, failed.op);
    }

    #[test]
    fn ublk_data_lies_at_the_offset_of_its_tag() {
        assert_eq!(data_offset(0), 0x8000_0000);
        assert_eq!(data_offset(3), 0x8000_0000 + (3 << 25));
    }

    #[test]
    fn ublk_descriptors_become_requests() {
        let write = IoDesc { op_flags: 1 | 1 << 13, sectors: 8, sector: 4096, addr: 0 };
        let wanted = Request { op: Operation::Write, sector: 4096, sectors: 8, fua: true, no_unmap: false };
        assert_eq!(Request::from(write), wanted);
        let zeroes = IoDesc { op_flags: 5 | 1 << 15, sectors: 8, sector: 0, addr: 0 };
        assert!(matches!(zeroes.into(), Request { op: Operation::WriteZeroes, no_unmap: true, fua: false, .. }));
        let foreign = IoDesc { op_flags: 13, ..zeroes };
        assert_eq!(Request::from(foreign).op, Operation::Unknown(13));
    }
}
