//! Every bound of the recorder in one place.

/// Smallest ring of a resource, in bytes.
pub const MIN_RING_BYTES: u64 = 1 << 20;
/// Largest ring of a resource, in bytes.
pub const MAX_RING_BYTES: u64 = 64 << 30;
/// A segment ends when its entries take this part of the ring, so that the oldest ones can go one by one.
pub const SEGMENTS: u64 = 8;
/// A snapshot takes at most this part of the ring. A resource whose state is larger is not recorded meanwhile.
pub const SNAPSHOTS: u64 = 4;
/// A segment's entries take at least so many times what its snapshot takes, so that snapshots cost little.
pub const ENTRIES_PER_SNAPSHOT: u64 = 2;
/// Entries are handed to the writer when they take so many bytes, when the first is so old, or when the core told of a change.
pub const CHUNK_BYTES: usize = 128 << 10;
/// See [`CHUNK_BYTES`]: what a killed process may lose of inputs that change no state.
pub const CHUNK_MS: u64 = 200;
/// Entries that the writer does not take, in bytes, beyond which they are dropped.
pub const MAX_WAITING_BYTES: usize = 4 << 20;
/// Chunks on their way to the writer, of all resources of a node.
pub const CHUNKS_IN_FLIGHT: usize = 128;
/// Buffers that are kept for the next chunks.
pub const SPARE_BUFFERS: usize = 16;
/// Time after which recording begins again where entries were dropped.
pub const GAP_RETRY_MS: u64 = 1_000;
/// A resource whose state was too large for a snapshot is tried again after this time.
pub const TOO_LARGE_RETRY_MS: u64 = 60_000;
/// Longest frame that is read, in bytes.
pub const MAX_FRAME_BYTES: u64 = MAX_RING_BYTES / SNAPSHOTS;
/// Files of one ring. The oldest go first, as they do when there are too many bytes.
pub const MAX_FILES: usize = 256;
