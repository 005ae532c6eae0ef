//! What goes into the core and what comes out: the whole surface between the state machine and the
//! runtime (the shard in production, the simulator in tests). design.md section 2.

use rkyv::{Archive, Deserialize, Serialize};
use zea_meta::placement::Placement;
use zea_wire::digest::DigestAlg;
use zea_wire::features::Negotiated;
use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::packet::Packet;

use crate::config::{NetOptions, PeerConfig, QuorumOptions, ResyncOptions, VolumeConfig};
use crate::event::Event;

/// Virtual time: nanoseconds since an origin that the runtime chose. Never goes backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Archive, Serialize, Deserialize)]
pub struct Time(pub u64);

impl Time {
    /// This instant plus `ms` milliseconds.
    pub const fn plus_ms(self, ms: u64) -> Time {
        Time(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Milliseconds from `earlier` to this instant, 0 if it lies ahead.
    pub const fn ms_since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}

/// Source of randomness: UUIDs, transaction ids, challenges. Seeded in the simulator.
pub trait Rng {
    /// 64 uniformly random bits.
    fn next_u64(&mut self) -> u64;
}

/// A payload buffer in the runtime's pool. The core never sees its bytes.
///
/// Ownership: the core holds one reference to each buffer it was given ([`Input::Request`], [`Input::Packet`],
/// [`Input::DiskDone`]) and gives it back once with [`Action::FreeBuf`]. Disk and send actions that name a buffer hold
/// references of their own inside the runtime, so the core may free a buffer right after the last action that uses it.
/// Exception: the buffer of a front-end *read* or *write* belongs to the request and goes back with [`Action::Complete`];
/// the core never frees it (a runtime keeps it until disk and sends are done with it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
pub struct BufId(pub u32);

/// A part of a buffer. `offset` and `len` in bytes, multiples of 512.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Payload {
    /// The buffer.
    pub buf: BufId,
    /// First byte in the buffer.
    pub offset: u32,
    /// Number of bytes.
    pub len: u32,
}

/// A front-end request, numbered by the front end; unique among those in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
pub struct ReqId(pub u64);

/// Names a disk command between action and completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskTag(pub u64);

/// Names a digest between action and result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DigestTag(pub u64);

/// Names an admin command between input and reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
pub struct AdminTag(pub u64);

/// One established pair of streams to a peer. A runtime never uses a number twice, so that what belongs to a
/// link that is gone can be told apart and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
pub struct LinkId(pub u64);

/// What a front end asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Op {
    /// Fill the payload.
    Read,
    /// Write the payload.
    Write,
    /// Discard: contents become zero or undefined.
    Discard,
    /// Write zeroes; `unmap`: the range may be deallocated.
    WriteZeroes {
        /// May deallocate.
        unmap: bool,
    },
    /// Everything completed before is stable when this completes.
    Flush,
}

/// A request of the front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Request {
    /// Its number.
    pub id: ReqId,
    /// On which volume.
    pub volume: VolumeNr,
    /// What to do.
    pub op: Op,
    /// First sector (512 B). 0 for a flush.
    pub sector: u64,
    /// Bytes, a multiple of 512; at most 1 MiB for reads and writes, 128 MiB for the others, 0 for a flush.
    pub len: u32,
    /// Source of a write, target of a read.
    pub payload: Option<Payload>,
    /// Complete only when stable.
    pub fua: bool,
}

/// Why a front-end request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum IoError {
    /// No usable copy of the data answered.
    #[error("input/output error")]
    Io,
    /// This node is not Primary.
    #[error("this node is Secondary: promote it first")]
    NotPrimary,
    /// The backing device is full and stayed full for the configured time.
    #[error("no space left on the backing device")]
    NoSpace,
    /// Outside of the device, misaligned, too long.
    #[error("request outside of the device or misaligned")]
    Invalid,
    /// The volume is not there, or going away.
    #[error("no such volume")]
    NoVolume,
    /// A limit of `limits.rs` was hit; try again.
    #[error("too many requests in flight")]
    Busy,
}

/// Why a disk command failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error, Archive, Serialize, Deserialize)]
pub enum DiskError {
    /// The device reported an error (errno).
    #[error("disk error {0}")]
    Io(i32),
    /// ENOSPC of a thin backing file or pool.
    #[error("no space left")]
    NoSpace,
    /// The device does not know the command (discard, write zeroes).
    #[error("not supported by the device")]
    Unsupported,
}

/// 4 KiB of meta data: super block, activity log or bitmap block.
pub type MetaBlock = Box<[u8; 4096]>;

/// A command to the backing device of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskCmd {
    /// Read into the payload.
    Read {
        /// First sector.
        sector: u64,
        /// Where to.
        payload: Payload,
    },
    /// Read `len` bytes into a buffer that the runtime takes from its pool and names in the completion. The runtime may
    /// delay the command until a buffer is free.
    ReadNew {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u32,
    },
    /// Write the payload; with `fua` it is stable on completion.
    Write {
        /// First sector.
        sector: u64,
        /// Where from.
        payload: Payload,
        /// Stable on completion.
        fua: bool,
    },
    /// Discard a range.
    Discard {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u32,
    },
    /// Zero a range.
    WriteZeroes {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u32,
        /// May deallocate.
        unmap: bool,
    },
    /// Every data and meta-data write that completed before is stable on completion.
    Flush,
    /// Read `len` bytes (a multiple of 4096, at most 1 MiB) of the meta-data device.
    MetaRead {
        /// First byte on the meta-data device, a multiple of 4096.
        offset_bytes: u64,
        /// Bytes.
        len: u32,
    },
    /// Write one block of the meta-data device; with `sync` it and every meta-data write completed before are stable on completion.
    MetaWrite {
        /// First byte on the meta-data device, a multiple of 4096.
        offset_bytes: u64,
        /// Its contents; comes back with the completion.
        block: MetaBlock,
        /// Stable on completion.
        sync: bool,
    },
}

/// What the runtime opened as the backing device of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Backing {
    /// Size of the data device in bytes.
    pub size_bytes: u64,
    /// Size of the meta-data device in bytes; the same device with internal placement.
    pub meta_size_bytes: u64,
    /// Where the meta data lies.
    pub placement: Placement,
    /// Discards reach the device.
    pub discard: bool,
    /// Smallest unit of I/O in bytes: 512 or 4096.
    pub logical_block_bytes: u32,
}

/// Why a link went away.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum LinkLost {
    /// The peer closed one of the streams.
    Closed,
    /// The operating system reported an error.
    Network(String),
    /// What arrived was no legal packet.
    Protocol(String),
    /// A send made no progress for the configured time.
    SendTimeout,
}

/// One event for the core.
#[derive(Debug)]
pub enum Input<'a> {
    /// A front end wants something done.
    Request(Request),
    /// A disk command ended.
    DiskDone {
        /// Which.
        tag: DiskTag,
        /// How.
        result: Result<(), DiskError>,
        /// The buffer of a successful [`DiskCmd::ReadNew`].
        buf: Option<BufId>,
        /// The bytes of a successful [`DiskCmd::MetaRead`]; empty otherwise.
        meta: &'a [u8],
        /// The block of a [`DiskCmd::MetaWrite`], for reuse.
        block: Option<MetaBlock>,
    },
    /// A digest is computed.
    DigestDone {
        /// Which.
        tag: DigestTag,
        /// As the algorithm gives it, 1 to 64 bytes.
        digest: &'a [u8],
    },
    /// Both streams to a peer are up.
    LinkUp {
        /// Peer.
        peer: NodeId,
        /// The new link.
        link: LinkId,
        /// The tie-break flag of wire-protocol.md 2.2: set where the control stream was *accepted*.
        resolve_conflicts: bool,
    },
    /// A link is gone; nothing sent on it later arrives. Never given for a link that the core closed itself.
    LinkDown {
        /// Peer.
        peer: NodeId,
        /// Which link.
        link: LinkId,
        /// Why.
        lost: LinkLost,
    },
    /// A packet arrived, with its bulk payload (data packets) in a buffer.
    Packet {
        /// Sender.
        peer: NodeId,
        /// On which link.
        link: LinkId,
        /// Volume of the header; `None` for connection wide packets.
        volume: Option<VolumeNr>,
        /// Header and fixed part.
        packet: Packet,
        /// Bulk payload.
        payload: Option<Payload>,
    },
    /// An administrator's command.
    Admin {
        /// Echoed in the reply.
        tag: AdminTag,
        /// What to do.
        command: Command,
    },
    /// [`crate::Resource::deadline`] has passed.
    Timer,
}

/// One thing for the runtime to do. Actions are carried out in order.
#[derive(Debug)]
pub enum Action {
    /// Bring up a link to this peer: keep trying, with back-off, until it is up or [`Action::Disconnect`] comes.
    Connect {
        /// Peer.
        peer: NodeId,
    },
    /// Stop trying and close the link that is up, after what was queued on it has been sent (bounded by the send time-out).
    /// No [`Input::LinkDown`] follows.
    Disconnect {
        /// Peer.
        peer: NodeId,
    },
    /// From here on both streams of the link use this packet format.
    SetNegotiated {
        /// Peer.
        peer: NodeId,
        /// Link.
        link: LinkId,
        /// Format.
        negotiated: Negotiated,
    },
    /// Queue a packet on the stream that [`Packet::stream`] names. Order is kept per stream.
    Send {
        /// Peer.
        peer: NodeId,
        /// Link.
        link: LinkId,
        /// Header volume.
        volume: Option<VolumeNr>,
        /// Header and fixed part.
        packet: Packet,
        /// Bulk payload behind it.
        payload: Option<Payload>,
    },
    /// Give a command to the backing device of a volume. No order between commands is implied.
    Disk {
        /// Echoed in the completion.
        tag: DiskTag,
        /// Volume.
        volume: VolumeNr,
        /// Command.
        cmd: DiskCmd,
    },
    /// Compute the digest of a payload; [`Input::DigestDone`] follows. Until then the core keeps the buffer.
    Digest {
        /// Echoed in the result.
        tag: DigestTag,
        /// How.
        alg: DigestAlg,
        /// Of what.
        payload: Payload,
    },
    /// Close the backing device of a volume: no command is in flight, none will follow.
    CloseDisk {
        /// Volume.
        volume: VolumeNr,
    },
    /// Answer a front-end request.
    Complete {
        /// Which.
        req: ReqId,
        /// How it ended.
        result: Result<(), IoError>,
    },
    /// Copy bytes between buffers: data that a peer sent, into the buffer of a front-end read.
    Copy {
        /// Source.
        from: Payload,
        /// Target, of the same length.
        to: Payload,
    },
    /// Give a buffer back.
    FreeBuf(BufId),
    /// Something observers want to know.
    Event(Event),
    /// Answer an admin command.
    Reply {
        /// Which.
        tag: AdminTag,
        /// How it ended.
        result: Result<(), AdminError>,
    },
}

/// The ordered list of actions of one input. Reused by the runtime from input to input.
pub type Outbox = Vec<Action>;

/// An administrator's command, as `zea` and the configuration give it.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum Command {
    /// Add a peer; it starts StandAlone.
    AddPeer(PeerConfig),
    /// Remove a peer that is StandAlone.
    RemovePeer {
        /// Which.
        peer: NodeId,
    },
    /// Change the options of a connection; in force from the next connect.
    SetNetOptions {
        /// Which.
        peer: NodeId,
        /// New options.
        net: NetOptions,
    },
    /// Change the options about quorum; in force at once, also for I/O that waits.
    SetQuorumOptions(QuorumOptions),
    /// Add a volume; it starts Diskless.
    AddVolume(VolumeConfig),
    /// Remove a Diskless volume.
    RemoveVolume {
        /// Which.
        volume: VolumeNr,
    },
    /// The runtime opened the backing device: read its meta data and bring it up.
    Attach {
        /// Which.
        volume: VolumeNr,
        /// What was opened.
        backing: Backing,
    },
    /// Give the backing device up; with `force` without asking the peers.
    Detach {
        /// Which.
        volume: VolumeNr,
        /// Do not wait for the cluster.
        force: bool,
    },
    /// StandAlone to Connecting.
    Connect {
        /// Which.
        peer: NodeId,
        /// After a split brain: this node's changes are to be thrown away.
        discard_my_data: bool,
    },
    /// To StandAlone.
    Disconnect {
        /// Which.
        peer: NodeId,
        /// Do not ask the cluster.
        force: bool,
    },
    /// Become Primary; `force` also without UpToDate data.
    Promote {
        /// Accept data that is not known to be UpToDate.
        force: bool,
    },
    /// Become Secondary. The runtime has made sure that no front end writes.
    Demote,
    /// `new-current-uuid --clear-bitmap`: take fresh disks for equal, here and on every connected peer, so that there is no initial
    /// sync.
    NewCurrentUuid {
        /// Which volume.
        volume: VolumeNr,
    },
    /// Throw away this node's data and resync all of it from a peer.
    Invalidate {
        /// Which volume.
        volume: VolumeNr,
    },
    /// Have a peer throw away its data and resync all of it from this node. Answered when the peer has agreed.
    InvalidateRemote {
        /// Which peer.
        peer: NodeId,
        /// Which volume.
        volume: VolumeNr,
    },
    /// Pause resyncs of a volume with a peer, in either direction, or let them go on.
    PauseSync {
        /// Which peer.
        peer: NodeId,
        /// Which volume.
        volume: VolumeNr,
        /// Pause.
        paused: bool,
    },
    /// Resync a volume after another one, or whenever it is due; in force at once.
    SetResyncAfter {
        /// Which volume.
        volume: VolumeNr,
        /// After which.
        after: Option<VolumeNr>,
    },
    /// Change how fast resyncs of a volume go; in force at once.
    SetResyncOptions {
        /// Which volume.
        volume: VolumeNr,
        /// New options.
        options: ResyncOptions,
    },
    /// Make a volume larger while it is in use, on all nodes.
    Resize {
        /// Which volume.
        volume: VolumeNr,
        /// Its new size.
        size_sectors: u64,
        /// What is new is the same on all disks, or nobody minds: no resync of it.
        assume_clean: bool,
    },
    /// Compare a volume with a peer's, block by block, while it is in use. Answered when it has begun.
    Verify {
        /// Which peer.
        peer: NodeId,
        /// Which volume.
        volume: VolumeNr,
        /// First sector; `None`: where the last verify was interrupted, else 0.
        start_sector: Option<u64>,
        /// The sector to stop at; `None`: the end.
        stop_sector: Option<u64>,
    },
    /// Demote, disconnect and detach everything.
    Down,
}

/// Why an admin command was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AdminError {
    /// DRBD's `SS_*` code (handshake-and-states.md 2.3) or 0 where DRBD has none.
    pub code: i32,
    /// What happened and what to do next, for people.
    pub message: String,
}
