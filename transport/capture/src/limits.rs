//! Bounds.

/// Bytes that one direction of a TCP connection may hold behind a gap. With more the gap counts as lost.
pub const MAX_EARLY_BYTES: usize = 16 << 20;

/// Bytes of one frame in a file: as much as tcpdump keeps of one.
pub const MAX_FRAME_BYTES: usize = 256 << 10;
