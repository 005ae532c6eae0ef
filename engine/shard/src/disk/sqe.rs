//! The submission entries of disk commands.
//!
//! Building one touches no memory; handing it to the ring does, under the contract of [`crate::ring::Ring::push`].
#![allow(unsafe_code)]

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue};

use crate::pool::{Buf, Pool, Region};
use crate::ring::Ring;
use crate::token::Token;

/// Zeroes for file systems that cannot zero a range. Page-aligned for direct I/O.
#[repr(align(4096))]
struct Zeroes([u8; ZERO_BYTES]);
const ZERO_BYTES: usize = 128 << 10;
static ZEROES: Zeroes = Zeroes([0; ZERO_BYTES]);

/// `BLOCK_URING_CMD_DISCARD`, `_IO(0x12, 0)`: Linux 6.12.
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

/// Registers the buffer's chunk at its first use.
fn ensure_registered(ring: &Ring<Token>, pool: &mut Pool, buf: Buf) {
    if let Some((chunk, base, len)) = pool.unregistered_chunk(buf) {
        // SAFETY: the pool stays mapped until after the ring is dropped.
        let result = unsafe { ring.register_buffer(chunk, base, len) };
        pool.registered(chunk, result);
    }
}

/// Memory of a pool buffer for an operation.
pub(super) fn memory(ring: &Ring<Token>, pool: &mut Pool, buf: Buf, offset: u32, len: u32) -> Region {
    ensure_registered(ring, pool, buf);
    pool.region(buf, offset, len)
}

pub(super) fn read(fd: Fd, to: Region, at: u64) -> squeue::Entry {
    match to.fixed {
        Some(index) => opcode::ReadFixed::new(fd, to.ptr, to.len, index).offset(at).build(),
        None => opcode::Read::new(fd, to.ptr, to.len).offset(at).build(),
    }
}

/// `dsync`: stable on completion.
pub(super) fn write(fd: Fd, from: Region, at: u64, dsync: bool) -> squeue::Entry {
    let flags = if dsync { libc::RWF_DSYNC } else { 0 };
    match from.fixed {
        Some(index) => opcode::WriteFixed::new(fd, from.ptr, from.len, index).offset(at).rw_flags(flags).build(),
        None => opcode::Write::new(fd, from.ptr, from.len).offset(at).rw_flags(flags).build(),
    }
}

pub(super) fn sync_file(fd: Fd) -> squeue::Entry {
    opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build()
}

pub(super) fn fallocate(fd: Fd, mode: i32, at: u64, len: u64) -> squeue::Entry {
    opcode::Fallocate::new(fd, len).offset(at).mode(mode | libc::FALLOC_FL_KEEP_SIZE).build()
}

/// A block device's discard: first byte in `addr`, bytes in `addr3`, which the command area overlays.
pub(super) fn discard_command(fd: Fd, at: u64, len: u64) -> squeue::Entry {
    let mut cmd = [0; 16];
    cmd[..8].copy_from_slice(&len.to_ne_bytes());
    let mut entry = opcode::UringCmd16::new(fd, BLOCK_URING_CMD_DISCARD).cmd(cmd).build();
    const ADDR: usize = 16;
    const _: () = assert!(size_of::<squeue::Entry>() == 64 && align_of::<squeue::Entry>() >= 8);
    // SAFETY: an entry is a repr(C) wrapper of the kernel's io_uring_sqe, in which bytes 16..24 are `addr`; the crate
    // has no setter for it with this opcode.
    unsafe { (&raw mut entry).cast::<u8>().add(ADDR).cast::<u64>().write(at) };
    entry
}

/// Writes up to `len` zeroes from a static page-aligned buffer.
pub(super) fn write_zeroes(fd: Fd, at: u64, len: u64) -> squeue::Entry {
    let len = len.min(ZERO_BYTES as u64) as u32;
    opcode::Write::new(fd, ZEROES.0.as_ptr(), len).offset(at).build()
}
