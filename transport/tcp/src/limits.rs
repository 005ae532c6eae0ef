//! The bounds of the connector.

/// Peers that one connector knows at a time.
pub const PEERS: usize = 1024;

/// Accepted sockets, of all peers, whose initial packet is not in yet. A socket above it is closed.
pub const PENDING: usize = 64;

/// Accepted sockets of one peer whose initial packet is not in yet. Two make a pair; the rest is room for
/// attempts that the peer gave up but whose end was not seen yet.
pub const PENDING_PER_PEER: usize = 8;

/// Commands that wait for the connector's thread; room for two of each peer and more.
pub const COMMANDS: usize = 4096;

/// Connections that the kernel completes ahead of accept, per listener (`wire-protocol.md` section 2.1).
pub const BACKLOG: i32 = 64;

/// Least time between two [`crate::Event::Attempt`] of one peer, in milliseconds.
pub const ATTEMPT_REPORT_MS: u64 = 1_000;

/// Least time between two [`crate::Event::ListenFailed`] of one address for the same cause, in milliseconds.
pub const LISTEN_REPORT_MS: u64 = 10_000;

/// Wait before a listener is tried again, or accepts again when file descriptors had run out, in milliseconds.
pub const LISTEN_RETRY_MS: u64 = 500;
