//! Configuration of a resource as the core needs it. The text form lives in the node daemon.

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::digest::DigestAlg;
use zea_wire::ids::{NodeId, VolumeNr};

use crate::limits;
pub use crate::quorum::{OnNoQuorum, OnSuspendedPrimaryOutdated, Quorum, QuorumOptions};
pub use crate::resync_rate::ResyncOptions;

/// Replication protocol (wire-protocol.md 8, `protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub enum Protocol {
    /// Complete when written locally and handed to the transport.
    A,
    /// Complete when the peer received it.
    B,
    /// Complete when the peer wrote it.
    #[default]
    C,
}

impl Protocol {
    /// The number in P_PROTOCOL.
    pub const fn number(self) -> u32 {
        match self {
            Protocol::A => 1,
            Protocol::B => 2,
            Protocol::C => 3,
        }
    }
}

/// after-sb-0pri: whose changes are lost after a split brain, while both nodes are Secondary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub enum AfterSb0Pri {
    /// Nobody's: they do not connect.
    #[default]
    Disconnect,
    /// Those of the node that became Primary after the other one, else as `DiscardLeastChanges`.
    DiscardYoungerPrimary,
    /// Those of the node that was Primary before, else as `DiscardLeastChanges`.
    DiscardOlderPrimary,
    /// Those of a node that has changed nothing.
    DiscardZeroChanges,
    /// Those of the node that has changed less.
    DiscardLeastChanges,
    /// This node's; the peer has `DiscardRemote`.
    DiscardLocal,
    /// The peer's, which has `DiscardLocal`.
    DiscardRemote,
}

/// after-sb-1pri: the same while one node is Primary. Its changes are never lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub enum AfterSb1Pri {
    /// Nobody's: they do not connect.
    #[default]
    Disconnect,
    /// Those of the Secondary, if after-sb-0pri says so, too.
    Consensus,
    /// Those of the Secondary.
    DiscardSecondary,
}

/// Names of policies, and their numbers in P_PROTOCOL (wire-protocol.md 8.3).
macro_rules! policies {
    ($name:ident { $($policy:ident = $text:literal, $number:literal;)+ }) => {
        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$policy),+];

            /// The name in the configuration.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$policy => $text,)+
                }
            }

            /// The number in P_PROTOCOL.
            pub const fn number(self) -> u32 {
                match self {
                    $($name::$policy => $number,)+
                }
            }
        }
    };
}

policies! {
    AfterSb0Pri {
        Disconnect = "disconnect", 0;
        DiscardYoungerPrimary = "discard-younger-primary", 1;
        DiscardOlderPrimary = "discard-older-primary", 2;
        DiscardZeroChanges = "discard-zero-changes", 3;
        DiscardLeastChanges = "discard-least-changes", 4;
        DiscardLocal = "discard-local", 5;
        DiscardRemote = "discard-remote", 6;
    }
}

policies! {
    AfterSb1Pri {
        Disconnect = "disconnect", 0;
        Consensus = "consensus", 7;
        DiscardSecondary = "discard-secondary", 8;
    }
}

/// Options of a connection. Times in milliseconds; defaults are DRBD's.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct NetOptions {
    /// Replication protocol.
    pub protocol: Protocol,
    /// Idle time on the control stream after which a P_PING goes out.
    pub ping_int_ms: u64,
    /// Time the peer has for a P_PING_ACK.
    pub ping_timeout_ms: u64,
    /// Base of the request time-out: `ko_count * timeout_ms`.
    pub timeout_ms: u64,
    /// See `timeout_ms`; 0 disables.
    pub ko_count: u32,
    /// `sha1`, `sha256`, …: authenticate the peer with the shared secret.
    pub cram_hmac_alg: Option<String>,
    /// At most 64 bytes.
    pub shared_secret: String,
    /// Digests of online verify. `None`: what the peer has configured, or crc32c with another Zea node.
    pub verify_alg: Option<DigestAlg>,
    /// Digests of a checksum-based resync, in which blocks that are equal are not copied. `None`: what another Zea node has
    /// configured, else blocks are copied without.
    pub csums_alg: Option<DigestAlg>,
    /// Send bitmaps as run lengths where that is shorter.
    pub use_rle: bool,
    /// Digests of all data on the link; one that is wrong ends it. The same on both ends.
    pub integrity_alg: Option<DigestAlg>,
    /// Policy for a split brain of two Secondaries. Only between two nodes in all, as the next one.
    pub after_sb_0pri: AfterSb0Pri,
    /// Policy for a split brain of a Primary and a Secondary.
    pub after_sb_1pri: AfterSb1Pri,
    /// The peer is known to keep no disk: no bitmap slot for it.
    pub bitmap: bool,
    /// Offer Zea's private feature bit (see `docs/adr`). Off only to act like a kernel peer in tests.
    pub keep_bits: bool,
    /// The highest version of the protocol that is offered: 86 to 101 or 118 to 124. Below 100 requests are shorter
    /// ([`NetOptions::max_bio_bytes`]), which is why such versions are spoken only where they are asked for.
    pub protocol_max: u32,
}

impl Default for NetOptions {
    fn default() -> Self {
        NetOptions {
            protocol: Protocol::C,
            ping_int_ms: 10_000,
            ping_timeout_ms: 500,
            timeout_ms: 6_000,
            ko_count: 7,
            cram_hmac_alg: None,
            shared_secret: String::new(),
            verify_alg: None,
            csums_alg: None,
            use_rle: true,
            integrity_alg: None,
            after_sb_0pri: AfterSb0Pri::default(),
            after_sb_1pri: AfterSb1Pri::default(),
            bitmap: true,
            keep_bits: true,
            protocol_max: limits::PROTOCOL_MAX,
        }
    }
}

/// A peer of the resource.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PeerConfig {
    /// Its node id.
    pub node_id: NodeId,
    /// Its name, for people.
    pub name: String,
    /// Options of the connection to it.
    pub net: NetOptions,
}

/// Options of the local disk of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct DiskOptions {
    /// Slots of the activity log.
    pub al_extents: u16,
    /// Flush the backing device at epoch ends and for front-end flushes. Off: the device is known to have no volatile cache,
    /// or the user does not care.
    pub disk_flushes: bool,
    /// How long a write waits for space on a full backing device before it fails.
    pub enospc_wait_ms: u64,
    /// Resync requests in flight, in sectors.
    pub resync_window_sectors: u64,
    /// How fast a resync goes.
    pub resync: ResyncOptions,
}

impl Default for DiskOptions {
    fn default() -> Self {
        DiskOptions {
            al_extents: 6433,
            disk_flushes: true,
            enospc_wait_ms: 30_000,
            resync_window_sectors: 8 * 2048,
            resync: ResyncOptions::default(),
        }
    }
}

/// A volume of the resource.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct VolumeConfig {
    /// Its number.
    pub volume: VolumeNr,
    /// Cap on the usable size; `None`: all of the smallest replica.
    pub size_sectors: Option<u64>,
    /// Options of the local disk.
    pub disk: DiskOptions,
}

/// A resource.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ResourceConfig {
    /// Its name.
    pub name: String,
    /// This node.
    pub node_id: NodeId,
    /// twopc-timeout: how long a two-phase commit may take.
    pub twopc_timeout_ms: u64,
    /// Flushes and FUA writes wait until they are stable on every connected UpToDate protocol-C peer. Off: kernel behaviour.
    pub flush_waits_for_peers: bool,
    /// Quorum.
    pub quorum: QuorumOptions,
}

impl ResourceConfig {
    /// Defaults for a node.
    pub fn new(name: impl Into<String>, node_id: NodeId) -> Self {
        ResourceConfig {
            name: name.into(),
            node_id,
            twopc_timeout_ms: 30_000,
            flush_waits_for_peers: true,
            quorum: QuorumOptions::default(),
        }
    }
}
