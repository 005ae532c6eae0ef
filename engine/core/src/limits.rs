//! Every bound of the core in one place.

/// Lowest protocol version of DRBD 9, and highest, that this core speaks. `dialect` has the older ones.
pub const PROTOCOL_MIN: u32 = 118;
/// See [`PROTOCOL_MIN`].
pub const PROTOCOL_MAX: u32 = 124;
/// Largest read or write of one request, in bytes (wire-protocol.md 9).
pub const MAX_BIO_BYTES: u32 = 1 << 20;
/// Largest discard or write-zeroes of one request, in bytes: 32 activity log extents.
pub const MAX_DISCARD_BYTES: u32 = 128 << 20;
/// Front-end requests that are not completed, per resource.
pub const MAX_REQUESTS: usize = 4096;
/// Requests in the transfer log: completed ones that still wait for a barrier ack included.
pub const MAX_TRANSFER_LOG: usize = 8192;
/// Writes in one epoch (`max-epoch-size`).
pub const MAX_EPOCH_SIZE: u32 = 2048;
/// Peer writes that a node keeps until they are peer-acked, per connection. Beyond: the connection is dropped.
pub const MAX_PEER_REQUESTS: usize = 16384;
/// Reads for peers at once, of all connections. A node has no more requests than [`MAX_REQUESTS`] out itself.
pub const MAX_PEER_READS: usize = MAX_REQUESTS;
/// Peers of a resource.
pub const MAX_PEERS: usize = 31;
/// Volumes of a resource.
pub const MAX_VOLUMES: usize = 256;
/// Largest resync request, in bytes.
pub const MAX_RESYNC_BYTES: u32 = 1 << 20;
/// Sectors after which a peer ack goes out (`peer-ack-window`).
pub const PEER_ACK_WINDOW_SECTORS: u64 = 4096;
/// Time after which a peer ack goes out (`peer-ack-delay`).
pub const PEER_ACK_DELAY_MS: u64 = 100;
/// Bytes read at once when a bitmap is loaded.
pub const META_READ_BYTES: u32 = 256 << 10;
/// Bitmap blocks written at once.
pub const BITMAP_WRITES_IN_FLIGHT: usize = 32;
/// Admin commands that wait for something.
pub const MAX_ADMIN_WAITING: usize = 64;
/// Age at which an epoch with writes is closed even if nobody asked for a flush.
pub const EPOCH_AGE_MS: u64 = 50;
/// Generations without an acknowledged write that a Primary remembers, per volume.
pub const MAX_FORMER_GENERATIONS: usize = 8;
/// Requests wait this long for a disk or a peer that is coming up.
pub const HOLD_MS: u64 = 10_000;
/// Resync reads a source serves at once, per peer device.
pub const MAX_RESYNC_READS: usize = 1024;
/// The same for a target that cannot be put off. Kernel DRBD sends up to max-buffers, 2048, of one block each.
pub const MAX_RESYNC_READS_AT_ALL: usize = 4096;
/// Resync requests a target has out at once, per peer device.
pub const MAX_RESYNC_REQUESTS: usize = 128;
/// Ranges that a target is told of during its resync and that wait for the next write of its bitmap; more are put together.
pub const MAX_LATE_RANGES: usize = 64;
/// Pause before a resync request that was not served is made again.
pub const RESYNC_RETRY_MS: u64 = 100;
/// Blocks a verify asks for at once, per peer device.
pub const MAX_VERIFY_REQUESTS: usize = 256;
/// Verify requests a target serves at once, per peer device. Kernel DRBD sends some two thousand at once.
pub const MAX_VERIFY_READS: usize = 4096;
/// Pause before marked blocks that could not be compared are tried again.
pub const VERIFY_RETRY_MS: u64 = 30_000;
/// Barriers without an ack, per connection, beyond which epochs end only where they must.
pub const MAX_UNACKED_BARRIERS: usize = 32;
/// Open epochs of a peer, per connection.
pub const MAX_OPEN_EPOCHS: usize = 8192;
/// After a mark of this node's own, what others say about a range may be older than the mark, for this long.
pub const IN_SYNC_DOUBT_MS: u64 = 2_000;
/// A promotion waits, by steps of so many milliseconds, while survivors of a Primary compare their data, and so many of them.
pub const PROMOTE_RETRY_MS: u64 = 100;
/// See [`PROMOTE_RETRY_MS`].
pub const PROMOTE_TRIES: u32 = 20;
/// A change that finds the others busy is tried again so many times.
pub const TWOPC_TRIES: u32 = 8;
/// A connect transaction that does not come to a vote is tried again so many times at short intervals, then at ever longer ones.
pub const CONNECT_QUICK_TRIES: u32 = 4;
/// At most that long (ms) a change that met another one waits before it is tried again: somebody may be waiting for it.
pub const TWOPC_BACK_OFF_MS: u64 = 3_000;
/// A handshake that ends after this time without the state of a volume blames that.
pub const SILENT_VOLUME_MS: u64 = 1_000;
/// Pause before a new link after one that ended in a protocol error (DRBD waits as long).
pub const REFUSED_RETRY_MS: u64 = 1_000;
/// A Primary that leaves in order may come back within this time before others are asked whether it is still there.
pub const PRIMARY_BACK_MS: u64 = 2_000;
/// UpToDate peers that still have bits towards each other this long after a resync compare again.
pub const RECHECK_MS: u64 = 3_000;
