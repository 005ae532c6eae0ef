//! Disk commands as operations of the ring.
//!
//! A command becomes one operation, or several in turn: short transfers are continued, a synchronous meta-data write
//! behind unsynchronised ones is followed by an fdatasync, zeroes are written where the file system cannot. Commands that
//! need a buffer of their own wait for one in order. No order between commands is promised (design.md 3).
//!
//! Invariant: an operation owns a reference to each buffer that it names until its completion.
#![allow(unsafe_code)]

use std::collections::VecDeque;

use io_uring::types::Fd;
use slab::Slab;
use zea_core::io::{DiskCmd, DiskError, DiskTag, MetaBlock, Payload};
use zea_wire::ids::VolumeNr;

use super::device::{Disk, Side};
use super::fault::Fault;
use super::sqe::{discard_command, fallocate, memory, read, sync_file, write, write_zeroes};
use crate::pool::{Buf, Pool, Purpose};
use crate::ring::Ring;
use crate::token::Token;

/// Alignment that a transfer has to be continued at.
const SECTOR: u64 = 512;

/// An attached device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskId(usize);

/// Whom a completion belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) resource: u32,
    pub(crate) volume: VolumeNr,
    pub(crate) tag: DiskTag,
}

/// A command that ended.
#[derive(Debug)]
pub(crate) struct DiskDone {
    pub(crate) owner: Owner,
    pub(crate) result: Result<(), DiskError>,
    /// The buffer of a successful `ReadNew`; its reference goes to the core.
    pub(crate) buf: Option<Buf>,
    /// Buffer and length of a successful `MetaRead`; to be released by the receiver.
    pub(crate) meta: Option<(Buf, u32)>,
    pub(crate) block: Option<MetaBlock>,
}

#[derive(Debug)]
enum Work {
    Read {
        buf: Buf,
        offset: u32,
        new: bool,
    },
    Write {
        buf: Buf,
        offset: u32,
        fua: bool,
    },
    /// `by_fallocate`: the device's own discard was tried before.
    Discard {
        by_fallocate: bool,
    },
    /// `by_write`: fallocate was tried before.
    Zero {
        unmap: bool,
        by_write: bool,
    },
    /// What the meta-data side had written when the flush began.
    Flush {
        meta_written: u64,
    },
    MetaRead {
        buf: Buf,
    },
    MetaWrite {
        buf: Buf,
        block: Option<MetaBlock>,
        sync: MetaSync,
    },
}

/// How a meta-data write becomes stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MetaSync {
    No,
    /// RWF_DSYNC: no other write waits to become stable.
    WithTheWrite,
    /// An fdatasync follows, for this write and earlier ones.
    Follows,
    /// That fdatasync runs; what it covers.
    Running {
        written: u64,
    },
}

#[derive(Debug)]
struct Op {
    disk: usize,
    owner: Owner,
    work: Work,
    /// First byte on the device.
    at: u64,
    len: u64,
    done: u64,
    /// Operations in the ring.
    pending: u8,
    /// One of them was interrupted.
    again: bool,
    error: Option<DiskError>,
}

/// All backing devices of a shard and the commands on them.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    disks: Slab<Disk>,
    ops: Slab<Op>,
    /// Commands that wait for a buffer, in order.
    waiting: VecDeque<(DiskId, Owner, DiskCmd)>,
    /// [`Pool::freed`] when the first of them was refused last.
    refused_at: u64,
    done: VecDeque<DiskDone>,
}

/// What a command needs next.
enum Next {
    Done,
    Again,
}

impl Disks {
    /// Takes an open device over.
    pub(crate) fn attach(&mut self, disk: Disk) -> DiskId {
        DiskId(self.disks.insert(disk))
    }

    /// Closes a device.
    ///
    /// # Panics
    /// While commands are in flight.
    pub(crate) fn close(&mut self, id: DiskId) {
        let disk = self.disks.remove(id.0);
        assert_eq!(disk.in_flight, 0, "a backing device was closed with commands in flight");
    }

    /// Installs or removes a fault.
    pub(crate) fn set_fault(&mut self, id: DiskId, fault: Option<Fault>) {
        self.disks[id.0].fault = fault;
    }

    /// Commands in flight on all devices.
    pub(crate) fn in_flight(&self) -> usize {
        self.ops.len() + self.waiting.len()
    }

    /// A command waits for a buffer.
    pub(crate) fn starved(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next command that ended.
    pub(crate) fn take_done(&mut self) -> Option<DiskDone> {
        self.done.pop_front()
    }

    /// Starts a command. Its end comes out of [`Disks::take_done`].
    pub(crate) fn submit(&mut self, ring: &mut Ring<Token>, pool: &mut Pool, id: DiskId, owner: Owner, cmd: DiskCmd) {
        let disk = &mut self.disks[id.0];
        disk.in_flight += 1;
        if let Some(error) = disk.fault.as_mut().and_then(|fault| fault.hits(&cmd)) {
            return self.refuse(id, owner, cmd, error);
        }
        if !disk.contains(&cmd) {
            tracing::error!(path = %disk.path().display(), ?cmd, "a disk command outside of the device");
            return self.refuse(id, owner, cmd, DiskError::Io(libc::EINVAL));
        }
        if !self.waiting.is_empty() && own_buffer(&cmd).is_some() {
            self.waiting.push_back((id, owner, cmd));
            return;
        }
        if let Err(cmd) = self.start(ring, pool, id, owner, cmd) {
            self.refused_at = pool.freed();
            self.waiting.push_back((id, owner, cmd));
        }
    }

    /// Starts commands that waited for a buffer, as far as there are buffers again.
    pub(crate) fn resume(&mut self, ring: &mut Ring<Token>, pool: &mut Pool) {
        if self.waiting.is_empty() || self.refused_at == pool.freed() {
            return;
        }
        while let Some((id, owner, cmd)) = self.waiting.pop_front() {
            if let Err(cmd) = self.start(ring, pool, id, owner, cmd) {
                self.refused_at = pool.freed();
                self.waiting.push_front((id, owner, cmd));
                return;
            }
        }
    }

    fn refuse(&mut self, id: DiskId, owner: Owner, cmd: DiskCmd, error: DiskError) {
        self.disks[id.0].in_flight -= 1;
        let block = match cmd {
            DiskCmd::MetaWrite { block, .. } => Some(block),
            _ => None,
        };
        self.done.push_back(DiskDone { owner, result: Err(error), buf: None, meta: None, block });
    }

    /// Gives the command back where its own buffer cannot be had.
    fn start(
        &mut self,
        ring: &mut Ring<Token>,
        pool: &mut Pool,
        id: DiskId,
        owner: Owner,
        cmd: DiskCmd,
    ) -> Result<(), DiskCmd> {
        let own = match own_buffer(&cmd) {
            None => None,
            Some((len, purpose)) => match pool.alloc(len, purpose) {
                None => return Err(cmd),
                buf => buf,
            },
        };
        let taken = |own: Option<Buf>| own.expect("own_buffer knows this command");
        let disk = &self.disks[id.0];
        let named = |pool: &mut Pool, payload: Payload| {
            let buf = Buf(payload.buf.0);
            pool.retain(buf);
            (buf, payload.offset, u64::from(payload.len))
        };
        let (work, at, len) = match cmd {
            DiskCmd::Read { sector, payload } => {
                let (buf, offset, len) = named(pool, payload);
                (Work::Read { buf, offset, new: false }, sector * SECTOR, len)
            }
            DiskCmd::ReadNew { sector, len } => {
                (Work::Read { buf: taken(own), offset: 0, new: true }, sector * SECTOR, len.into())
            }
            DiskCmd::Write { sector, payload, fua } => {
                let (buf, offset, len) = named(pool, payload);
                (Work::Write { buf, offset, fua }, sector * SECTOR, len)
            }
            DiskCmd::Discard { sector, len } => {
                let by_fallocate = !disk.data().is_block_device();
                (Work::Discard { by_fallocate }, sector * SECTOR, len.into())
            }
            DiskCmd::WriteZeroes { sector, len, unmap } => {
                (Work::Zero { unmap, by_write: false }, sector * SECTOR, len.into())
            }
            DiskCmd::Flush => (Work::Flush { meta_written: disk.meta_written }, 0, 0),
            DiskCmd::MetaRead { offset_bytes, len } => (Work::MetaRead { buf: taken(own) }, offset_bytes, len.into()),
            DiskCmd::MetaWrite { offset_bytes, block, sync } => {
                let buf = taken(own);
                pool.fill(buf, 0, &block[..]);
                let sync = match (sync, disk.meta_written == disk.meta_stable) {
                    (false, _) => MetaSync::No,
                    (true, true) => MetaSync::WithTheWrite,
                    (true, false) => MetaSync::Follows,
                };
                (Work::MetaWrite { buf, block: Some(block), sync }, offset_bytes, 4096)
            }
        };
        let key =
            self.ops.insert(Op { disk: id.0, owner, work, at, len, done: 0, pending: 0, again: false, error: None });
        self.issue(ring, pool, key);
        Ok(())
    }

    /// Hands the command's next operation to the ring.
    fn issue(&mut self, ring: &mut Ring<Token>, pool: &mut Pool, key: usize) {
        let op = &mut self.ops[key];
        let disk = &self.disks[op.disk];
        let (at, left) = (op.at + op.done, op.len - op.done);
        let data = Fd(disk.data().raw_fd());
        let meta = Fd(disk.meta().raw_fd());
        let mut memory = |buf: Buf, offset: u32| memory(ring, pool, buf, offset + op.done as u32, left as u32);
        let mut second = None;
        let first = match &op.work {
            Work::Read { buf, offset, .. } => read(data, memory(*buf, *offset), at),
            Work::MetaRead { buf } => read(meta, memory(*buf, 0), at),
            Work::Write { buf, offset, fua } => write(data, memory(*buf, *offset), at, *fua),
            Work::MetaWrite { sync: MetaSync::Running { .. }, .. } => sync_file(meta),
            Work::MetaWrite { buf, sync, .. } => write(meta, memory(*buf, 0), at, *sync == MetaSync::WithTheWrite),
            Work::Flush { .. } => {
                second = (disk.side_of_meta() == Side::Separate).then(|| sync_file(meta));
                sync_file(data)
            }
            Work::Discard { by_fallocate: false } => discard_command(data, at, left),
            Work::Discard { by_fallocate: true } => fallocate(data, libc::FALLOC_FL_PUNCH_HOLE, at, left),
            Work::Zero { by_write: true, .. } => write_zeroes(data, at, left),
            Work::Zero { unmap, .. } => {
                let mode = if *unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
                fallocate(data, mode, at, left)
            }
        };
        for entry in [Some(first), second].into_iter().flatten() {
            op.pending += 1;
            // SAFETY: buffers are kept by the reference of this operation, `ZEROES` is static, the descriptors belong
            // to a disk that is only closed without commands in flight.
            unsafe { ring.push(entry, Token::Disk(key as u32)) };
        }
    }

    /// An operation of the ring ended.
    pub(crate) fn complete(&mut self, ring: &mut Ring<Token>, pool: &mut Pool, key: u32, result: i32) {
        let key = key as usize;
        self.ops[key].pending -= 1;
        let next = self.advance(key, result);
        let op = &mut self.ops[key];
        op.again |= matches!(next, Next::Again);
        if op.pending > 0 {
            return;
        }
        if std::mem::take(&mut op.again) && op.error.is_none() {
            self.issue(ring, pool, key);
        } else {
            self.finish(pool, key);
        }
    }

    fn advance(&mut self, key: usize, result: i32) -> Next {
        let op = &mut self.ops[key];
        if matches!(-result, libc::EINTR | libc::EAGAIN) {
            return Next::Again;
        }
        if result < 0 {
            return op.failed(-result);
        }
        let moved = result as u64;
        match &mut op.work {
            Work::Discard { .. } | Work::Zero { by_write: false, .. } | Work::Flush { .. } => Next::Done,
            Work::MetaWrite { sync: MetaSync::Running { .. }, .. } => Next::Done,
            work => {
                // Direct I/O goes on at a sector.
                op.done += moved - moved % SECTOR;
                if op.done < op.len {
                    if moved < SECTOR {
                        op.error = Some(DiskError::Io(libc::EIO));
                        return Next::Done;
                    }
                    return Next::Again;
                }
                match work {
                    Work::MetaWrite { sync, .. } => {
                        let disk = &mut self.disks[op.disk];
                        match sync {
                            MetaSync::WithTheWrite => Next::Done,
                            MetaSync::Follows => {
                                disk.meta_written += 1;
                                *sync = MetaSync::Running { written: disk.meta_written };
                                Next::Again
                            }
                            _ => {
                                disk.meta_written += 1;
                                Next::Done
                            }
                        }
                    }
                    _ => Next::Done,
                }
            }
        }
    }

    fn finish(&mut self, pool: &mut Pool, key: usize) {
        let op = self.ops.remove(key);
        let disk = &mut self.disks[op.disk];
        disk.in_flight -= 1;
        let result = op.error.map_or(Ok(()), Err);
        let mut done = DiskDone { owner: op.owner, result, buf: None, meta: None, block: None };
        match op.work {
            Work::Read { buf, new: true, .. } if result.is_ok() => done.buf = Some(buf),
            Work::MetaRead { buf } if result.is_ok() => done.meta = Some((buf, op.len as u32)),
            Work::Read { buf, .. } | Work::Write { buf, .. } | Work::MetaRead { buf } => pool.release(buf),
            Work::MetaWrite { buf, block, sync } => {
                pool.release(buf);
                done.block = block;
                if let (MetaSync::Running { written }, true) = (sync, result.is_ok()) {
                    disk.meta_stable = disk.meta_stable.max(written);
                }
            }
            Work::Flush { meta_written } if result.is_ok() => {
                disk.meta_stable = disk.meta_stable.max(meta_written);
            }
            Work::Flush { .. } | Work::Discard { .. } | Work::Zero { .. } => {}
        }
        self.done.push_back(done);
    }
}

impl Op {
    /// The device said no: another way, or the command's end.
    fn failed(&mut self, errno: i32) -> Next {
        let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EINVAL | libc::ENODEV);
        match &mut self.work {
            Work::Discard { by_fallocate } if unsupported && !*by_fallocate => {
                *by_fallocate = true;
                return Next::Again;
            }
            Work::Zero { by_write, .. } if unsupported && !*by_write => {
                *by_write = true;
                return Next::Again;
            }
            _ => {}
        }
        let error = match errno {
            libc::ENOSPC | libc::EDQUOT => DiskError::NoSpace,
            _ if unsupported && matches!(self.work, Work::Discard { .. }) => DiskError::Unsupported,
            errno => DiskError::Io(errno),
        };
        self.error.get_or_insert(error);
        Next::Done
    }
}

/// Length and purpose of the buffer that the runtime takes for a command.
fn own_buffer(cmd: &DiskCmd) -> Option<(u32, Purpose)> {
    match cmd {
        DiskCmd::ReadNew { len, .. } => Some((*len, Purpose::Request)),
        DiskCmd::MetaRead { len, .. } => Some((*len, Purpose::Meta)),
        DiskCmd::MetaWrite { .. } => Some((4096, Purpose::Meta)),
        _ => None,
    }
}
