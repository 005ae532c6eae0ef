//! The buffer pool of a shard: page-aligned buffers in size classes, counted references, registered with the ring.
//!
//! One anonymous mapping, untouched pages cost nothing. It is cut into 1 MiB chunks, each of one class; a chunk is
//! registered with the ring (and so pinned) when the first of its buffers is used for disk I/O, because a class hands out
//! its lowest free chunks first in a young process and the last freed buffer later: memory follows the peak of use.
//! Where RLIMIT_MEMLOCK forbids it, the pool goes on unregistered and says so once.
//!
//! **Who may take how much.** Buffers are taken for a [`Purpose`]. What others wait for may take the last ones: a request
//! of the front end waits for the peer's acknowledgement, the peer's may wait in this very node for a receive buffer, and
//! both wait for meta data. So each purpose leaves a share to those below it, and no circle of nodes can lock up.
//!
//! Invariants: a buffer is free exactly if its count is 0; only the owner thread touches the counts; bytes are only
//! accessed through raw copies, never through references, because the kernel may be writing next to them.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use thiserror::Error;
use zea_wire::digest::{Digest, DigestAlg, MAX_DIGEST_LEN};

use crate::limits::MAX_POOL_BYTES;

/// Bytes of a chunk, the unit of registration. Every class's buffer size divides it.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Smallest buffer: a page.
pub const MIN_BUFFER_BYTES: usize = 4096;

/// What a buffer is taken for, from the most to the least privileged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Meta data: everything waits for it.
    Meta,
    /// Payload from a peer: ends with the local disk.
    Receive,
    /// Reads for a peer, and requests of the front end: end with the peer.
    Request,
}

impl Purpose {
    /// Buffers of a class of `count` that are left to more privileged purposes.
    fn leaves(self, count: u32) -> u32 {
        match self {
            Purpose::Meta => 0,
            Purpose::Receive => (count / 16).max(1),
            Purpose::Request => (count / 2).max(2),
        }
    }
}

/// A buffer of a pool. The number is what the core calls `BufId`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Buf(pub u32);

/// Buffers of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassConfig {
    /// Bytes of each, a power of two from 4 KiB to 1 MiB.
    pub bytes: u32,
    /// How many; rounded up to fill whole chunks.
    pub count: u32,
}

/// Size of a pool: classes in ascending order of size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// The classes.
    pub classes: Vec<ClassConfig>,
}

impl Default for PoolConfig {
    /// 64 MiB when all of it is in use.
    fn default() -> Self {
        let class = |bytes, count| ClassConfig { bytes, count };
        PoolConfig {
            classes: vec![
                class(4 << 10, 3072),
                class(16 << 10, 512),
                class(64 << 10, 192),
                class(256 << 10, 32),
                class(1 << 20, 24),
            ],
        }
    }
}

/// Why there is no pool.
#[derive(Debug, Error)]
pub enum PoolError {
    /// A class that cannot be.
    #[error("buffer class of {0} bytes: sizes are ascending powers of two from 4 KiB to 1 MiB, the last one 1 MiB")]
    Class(u32),
    /// Too few buffers to leave each purpose its share.
    #[error("{count} buffers of {bytes} bytes: at least 4 are needed")]
    Count {
        /// Size.
        bytes: u32,
        /// How many.
        count: u32,
    },
    /// Over the limit.
    #[error("the buffer pool would take {0} bytes, the limit is {MAX_POOL_BYTES}")]
    TooLarge(u64),
    /// The system has no address space left.
    #[error("cannot map the buffer pool: {0}")]
    Map(std::io::Error),
}

/// A piece of pool memory, for the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// First byte.
    pub ptr: *mut u8,
    /// Bytes.
    pub len: u32,
    /// Index of the registered buffer that contains it, if it is registered.
    pub fixed: Option<u16>,
}

#[derive(Debug)]
struct Class {
    bytes: usize,
    count: u32,
    /// Number of the first buffer.
    first: u32,
    /// First chunk.
    first_chunk: usize,
    free: Vec<u32>,
}

/// Whether a chunk is known to the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registration {
    Untried,
    Registered,
    Refused,
}

/// The pool. See the module.
#[derive(Debug)]
pub struct Pool {
    base: NonNull<u8>,
    mapped: usize,
    classes: Vec<Class>,
    /// References of each buffer.
    refs: Vec<u16>,
    chunks: Vec<Registration>,
    register: bool,
    /// Times a buffer was given back, so that who waits for one knows when to look again.
    freed: u64,
    /// Bytes of which a digest is computed.
    scratch: Vec<u8>,
}

impl Pool {
    /// Maps a pool. Nothing is touched yet.
    ///
    /// # Errors
    /// The configuration is out of bounds, or the mapping failed.
    pub fn new(config: &PoolConfig) -> Result<Pool, PoolError> {
        let mut classes: Vec<Class> = Vec::new();
        let (mut chunk, mut first) = (0_usize, 0_u32);
        for class in &config.classes {
            let bytes = class.bytes as usize;
            let ascends = classes.last().is_none_or(|last| last.bytes < bytes);
            if !ascends || !bytes.is_power_of_two() || !(MIN_BUFFER_BYTES..=CHUNK_BYTES).contains(&bytes) {
                return Err(PoolError::Class(class.bytes));
            }
            if class.count < 4 {
                return Err(PoolError::Count { bytes: class.bytes, count: class.count });
            }
            let total = u64::from(class.count) * bytes as u64;
            if total > MAX_POOL_BYTES {
                return Err(PoolError::TooLarge(total));
            }
            let chunks = (total as usize).div_ceil(CHUNK_BYTES);
            let count = (chunks * CHUNK_BYTES / bytes) as u32;
            // Lowest last: taken first.
            let free = (first..first + count).rev().collect();
            classes.push(Class { bytes, count, first, first_chunk: chunk, free });
            chunk += chunks;
            first += count;
        }
        match classes.last() {
            Some(last) if last.bytes == CHUNK_BYTES => {}
            last => return Err(PoolError::Class(last.map_or(0, |c| c.bytes as u32))),
        }
        let mapped = chunk * CHUNK_BYTES;
        if mapped as u64 > MAX_POOL_BYTES {
            return Err(PoolError::TooLarge(mapped as u64));
        }
        Ok(Pool {
            base: map(mapped).map_err(PoolError::Map)?,
            mapped,
            classes,
            refs: vec![0; first as usize],
            chunks: vec![Registration::Untried; chunk],
            register: false,
            freed: 0,
            scratch: Vec::new(),
        })
    }

    /// Number of chunks: the registered buffers that the ring has to reserve.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// From here on chunks are to be registered at their first use. See [`Pool::unregistered_chunk`].
    pub fn enable_registration(&mut self) {
        self.register = true;
    }

    /// Largest buffer in bytes.
    pub const fn max_len() -> u32 {
        CHUNK_BYTES as u32
    }

    /// Number of largest buffers that a purpose can have at most.
    pub fn largest(&self, purpose: Purpose) -> u32 {
        self.classes.last().map_or(0, |class| class.count - purpose.leaves(class.count))
    }

    /// Takes a buffer of at least `len` bytes with one reference, from the smallest class that has one to spare for this
    /// purpose. `None`: none now, wait until [`Pool::freed`] changes.
    ///
    /// # Panics
    /// Where `len` is over [`Pool::max_len`] or 0.
    pub fn alloc(&mut self, len: u32, purpose: Purpose) -> Option<Buf> {
        assert!(len > 0 && len <= Self::max_len(), "a buffer of {len} bytes");
        let fits = self.classes.iter_mut().filter(|c| c.bytes >= len as usize);
        // The next larger class may help out, a 4 KiB request never takes a 1 MiB buffer.
        for class in fits.take(2) {
            if class.free.len() as u32 > purpose.leaves(class.count) {
                let nr = class.free.pop()?;
                assert_eq!(self.refs[nr as usize], 0, "a free buffer has references");
                self.refs[nr as usize] = 1;
                return Some(Buf(nr));
            }
        }
        None
    }

    /// Takes one more reference.
    ///
    /// # Panics
    /// Where the buffer is free, or has 65,535 references.
    pub fn retain(&mut self, buf: Buf) {
        let refs = &mut self.refs[buf.0 as usize];
        assert!(*refs > 0, "a reference to free buffer {}", buf.0);
        *refs = refs.checked_add(1).expect("too many references to a buffer");
    }

    /// Gives one reference back; the last one frees the buffer.
    ///
    /// # Panics
    /// Where the buffer is free.
    pub fn release(&mut self, buf: Buf) {
        let refs = &mut self.refs[buf.0 as usize];
        assert!(*refs > 0, "buffer {} freed twice", buf.0);
        *refs -= 1;
        if *refs == 0 {
            self.freed = self.freed.wrapping_add(1);
            self.class_mut(buf).free.push(buf.0);
        }
    }

    /// Gives back what was just taken for something that needs more than there is. For those who wait nothing has changed: if
    /// [`Pool::freed`] said so, they would try again at once, for ever.
    ///
    /// # Panics
    /// Where somebody else has a reference.
    pub fn put_back(&mut self, buf: Buf) {
        let freed = self.freed;
        self.release(buf);
        assert_eq!(self.refs[buf.0 as usize], 0, "buffer {} is in use", buf.0);
        self.freed = freed;
    }

    /// Changes with each buffer that becomes free.
    pub fn freed(&self) -> u64 {
        self.freed
    }

    /// Buffers that are in use.
    pub fn in_use(&self) -> usize {
        self.refs.len() - self.classes.iter().map(|c| c.free.len()).sum::<usize>()
    }

    /// Bytes of the buffers that are in use.
    pub fn bytes_in_use(&self) -> u64 {
        self.classes.iter().map(|c| (c.count as usize - c.free.len()) as u64 * c.bytes as u64).sum()
    }

    /// Bytes of all buffers.
    pub fn capacity_bytes(&self) -> u64 {
        self.mapped as u64
    }

    /// Size of a buffer.
    pub fn len(&self, buf: Buf) -> usize {
        self.classes[self.class_of(buf)].bytes
    }

    /// `true` never: a pool has buffers.
    pub fn is_empty(&self) -> bool {
        self.refs.is_empty()
    }

    fn class_of(&self, buf: Buf) -> usize {
        let index = self.classes.partition_point(|c| c.first <= buf.0);
        assert!(index > 0 && (buf.0 as usize) < self.refs.len(), "no buffer {}", buf.0);
        index - 1
    }

    fn class_mut(&mut self, buf: Buf) -> &mut Class {
        let index = self.class_of(buf);
        &mut self.classes[index]
    }

    /// Byte offset of a buffer in the mapping, checked for a range within it.
    fn locate(&self, buf: Buf, offset: u32, len: u32) -> usize {
        let class = &self.classes[self.class_of(buf)];
        assert!(self.refs[buf.0 as usize] > 0, "use of free buffer {}", buf.0);
        let end = u64::from(offset) + u64::from(len);
        assert!(end <= class.bytes as u64, "bytes {offset}..{end} of a buffer of {}", class.bytes);
        class.first_chunk * CHUNK_BYTES + (buf.0 - class.first) as usize * class.bytes + offset as usize
    }

    /// A range of a buffer, for the kernel. It stays valid as long as the pool; that nobody else uses the bytes is what
    /// the reference is for.
    ///
    /// # Panics
    /// Where the buffer is free or the range outside.
    pub fn region(&self, buf: Buf, offset: u32, len: u32) -> Region {
        let at = self.locate(buf, offset, len);
        let chunk = at / CHUNK_BYTES;
        let fixed = (self.chunks[chunk] == Registration::Registered).then_some(chunk as u16);
        // SAFETY: `locate` checked that the range lies in the mapping.
        let ptr = unsafe { self.base.as_ptr().add(at) };
        Region { ptr, len, fixed }
    }

    /// The chunk of this buffer (index, first byte, bytes) if it still has to be registered; the answer to
    /// [`Pool::registered`].
    pub fn unregistered_chunk(&self, buf: Buf) -> Option<(u16, *mut u8, usize)> {
        if !self.register {
            return None;
        }
        let chunk = self.locate(buf, 0, 0) / CHUNK_BYTES;
        if self.chunks[chunk] != Registration::Untried {
            return None;
        }
        // SAFETY: chunk `chunk` lies in the mapping.
        let ptr = unsafe { self.base.as_ptr().add(chunk * CHUNK_BYTES) };
        Some((u16::try_from(chunk).ok()?, ptr, CHUNK_BYTES))
    }

    /// Says how the registration of a chunk went. After the first refusal no other chunk is tried.
    pub fn registered(&mut self, chunk: u16, result: std::io::Result<()>) {
        match result {
            Ok(()) => self.chunks[usize::from(chunk)] = Registration::Registered,
            Err(e) => {
                self.chunks[usize::from(chunk)] = Registration::Refused;
                self.register = false;
                tracing::info!(
                    chunk,
                    "buffers are not registered with the ring ({e}): raise RLIMIT_MEMLOCK for somewhat cheaper disk I/O"
                );
            }
        }
    }

    /// Copies bytes into a buffer.
    ///
    /// # Panics
    /// Where the buffer is free or the range outside.
    pub fn fill(&mut self, buf: Buf, offset: u32, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).expect("a buffer has at most 1 MiB");
        let to = self.region(buf, offset, len);
        // SAFETY: the range lies in the mapping, and `bytes` cannot: nobody gets references into it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.ptr, bytes.len()) }
    }

    /// Copies bytes out of a buffer.
    ///
    /// # Panics
    /// Where the buffer is free or the range outside.
    pub fn copy_out(&self, buf: Buf, offset: u32, bytes: &mut [u8]) {
        let len = u32::try_from(bytes.len()).expect("a buffer has at most 1 MiB");
        let from = self.region(buf, offset, len);
        // SAFETY: as in `fill`.
        unsafe { std::ptr::copy_nonoverlapping(from.ptr, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Fills the beginning of a buffer from a file that does not block.
    ///
    /// # Errors
    /// The file's, or it has less there.
    ///
    /// # Panics
    /// Where the buffer is free or too small.
    pub fn read_file(&mut self, buf: Buf, file: BorrowedFd<'_>, offset: u64, len: u32) -> std::io::Result<()> {
        let to = self.region(buf, 0, len);
        // SAFETY: the range lies in the mapping, and no reference into it exists.
        let moved = unsafe { libc::pread(file.as_raw_fd(), to.ptr.cast(), len as usize, offset as libc::off_t) };
        whole(moved, len)
    }

    /// Writes the beginning of a buffer to a file that does not block.
    ///
    /// # Errors
    /// The file's, or it takes less.
    ///
    /// # Panics
    /// Where the buffer is free or too small.
    pub fn write_file(&self, buf: Buf, file: BorrowedFd<'_>, offset: u64, len: u32) -> std::io::Result<()> {
        let from = self.region(buf, 0, len);
        // SAFETY: as in `read_file`.
        let moved = unsafe { libc::pwrite(file.as_raw_fd(), from.ptr.cast(), len as usize, offset as libc::off_t) };
        whole(moved, len)
    }

    /// The digest of a part of a buffer.
    ///
    /// # Panics
    /// Where the buffer is free or the range outside.
    pub fn digest(&mut self, alg: DigestAlg, buf: Buf, offset: u32, len: u32) -> Digest {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.resize(len as usize, 0);
        self.copy_out(buf, offset, &mut bytes);
        let mut out = [0; MAX_DIGEST_LEN];
        let digest_len = alg.compute(&bytes, &mut out);
        self.scratch = bytes;
        Digest::new(&out[..digest_len]).expect("digests have 1 to 64 bytes")
    }

    /// Copies bytes from one buffer to another, or within one.
    ///
    /// # Panics
    /// Where a buffer is free or a range outside.
    pub fn copy(&mut self, from: Buf, from_offset: u32, to: Buf, to_offset: u32, len: u32) {
        let (from, to) = (self.region(from, from_offset, len), self.region(to, to_offset, len));
        // SAFETY: both ranges lie in the mapping; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from.ptr, to.ptr, len as usize) }
    }
}

/// What a system call moved, which has to be all of it.
fn whole(moved: isize, len: u32) -> std::io::Result<()> {
    match moved {
        ..0 => Err(std::io::Error::last_os_error()),
        moved if moved as u64 == u64::from(len) => Ok(()),
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

fn map(len: usize) -> std::io::Result<NonNull<u8>> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOMEM))
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the mapping came from `map` and nobody holds references into it; the ring is dropped before the pool.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped) };
        assert_eq!(result, 0, "munmap of the buffer pool");
    }
}

#[cfg(test)]
mod tests;
