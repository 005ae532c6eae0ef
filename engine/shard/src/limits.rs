//! Every bound of the runtime in one place.

/// Entries of the submission queue.
pub const SQ_ENTRIES: u32 = 1024;
/// Entries of the completion queue, and so the most operations in the kernel at once; what is beyond waits in the ring's backlog.
pub const CQ_ENTRIES: u32 = 8192;
/// Largest pool in bytes.
pub const MAX_POOL_BYTES: u64 = 4 << 30;
/// Messages in a shard's mailbox.
pub const MAILBOX_MESSAGES: usize = 1024;
/// Messages taken from the mailbox in one turn, so that a flood of them cannot starve I/O.
pub const MAILBOX_BATCH: usize = 64;
/// Staging buffer of a link's data stream, in bytes.
pub const DATA_STAGING_BYTES: usize = 256 << 10;
/// Staging buffer of a link's control stream, in bytes.
pub const CONTROL_STAGING_BYTES: usize = 32 << 10;
/// Bytes that may be queued for sending on one stream of a link, beyond which the link is given up. Payload is bounded by
/// the pool anyway; this is about what the peer makes us answer without reading the answers.
pub const MAX_SEND_QUEUE_BYTES: u64 = 128 << 20;
/// Time that a closing link's peer has to close its side, in milliseconds.
pub const LINGER_MS: u64 = 500;
/// How often time-outs of links are looked at while something is under way, in milliseconds.
pub const TICK_MS: u64 = 50;
/// Longest time that a turn waits for all legs of a write that is alone, in milliseconds: how late anything else can be
/// noticed meanwhile.
pub const LEGS_WAIT_MS: u64 = 5;

// A packet's prefix fits the smaller staging buffer, so that a receive always has room.
const _: () = assert!(CONTROL_STAGING_BYTES > zea_wire::packet::MAX_PREFIX_BYTES);
/// Requests of one NBD connection that are not answered.
pub const NBD_QUEUE_DEPTH: usize = 256;
/// Bytes of one NBD connection's answers that the client did not take; beyond that its requests wait.
pub const NBD_MAX_UNSENT_BYTES: u64 = 16 << 20;
/// Staging buffer of an NBD connection, in bytes.
pub const NBD_STAGING_BYTES: usize = 128 << 10;
/// Longest read or write that an export offers, in bytes; less where the pool is small.
pub const NBD_MAX_PAYLOAD: u32 = 8 << 20;
/// Requests of one block device that are not answered.
pub const DEVICE_DEPTH: u16 = 128;
/// Tags of all block devices of a shard. Each has an operation in the kernel all the time, and half of all operations is left to
/// what they cause.
pub const MAX_DEVICE_TAGS: usize = CQ_ENTRIES as usize / 2;
/// Front-end connections of a shard.
pub const MAX_FRONT_ENDS: usize = 1024;
/// Resources of a shard.
pub const MAX_RESOURCES: usize = 1024;
/// Subscriptions to events of a shard.
pub const MAX_SUBSCRIBERS: usize = 64;
/// Admin commands of a shard that wait for their core.
pub const MAX_ADMINS: usize = 1024;
/// Inputs of a resource between two checks of its core's invariants.
pub const INPUTS_PER_CHECK: u32 = 10_000;
/// Listening sockets of a shard.
pub const MAX_LISTENERS: usize = 64;
/// Time that a front end's client has for its handshake, in milliseconds.
pub const HANDSHAKE_MS: u64 = 10_000;
