//! Roles, disk, connection and replication states, and the state word that carries them
//! (`handshake-and-states.md` sections 1, 2.1, 2.2).

use std::fmt;

use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

/// An enum with the wire's numbers and the tools' names.
macro_rules! numbered {
    (
        $(#[$meta:meta])*
        $name:ident { $( $(#[$vmeta:meta])* $variant:ident = $number:literal ),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum $name {
            $( $(#[$vmeta])* $variant = $number, )+
        }

        archived_as_bytes!($name[1], |value| [value.as_u8()], |[number]| $name::from_u8(number));

        impl $name {
            /// Every value in ascending order.
            pub const ALL: &'static [$name] = &[$( $name::$variant ),+];

            /// The value with this number.
            #[must_use]
            pub const fn from_u8(number: u8) -> Option<$name> {
                match number {
                    $( $number => Some($name::$variant), )+
                    _ => None,
                }
            }

            /// The number.
            #[must_use]
            pub const fn as_u8(self) -> u8 {
                self as u8
            }

            /// The name exactly as DRBD's tools print it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $( $name::$variant => stringify!($variant), )+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

numbered! {
    /// The role of a node.
    #[derive(Default)]
    Role {
        /// Not known (not connected).
        #[default]
        Unknown = 0,
        /// May write.
        Primary = 1,
        /// May not write.
        Secondary = 2,
    }
}

numbered! {
    /// The state of a disk, with 9's numbers (section 2.1). Below version 110 the wire has other
    /// numbers: [`DiskState::to_wire_pre110`].
    #[derive(Default)]
    DiskState {
        /// No disk.
        #[default]
        Diskless = 0,
        /// Meta data is being read.
        Attaching = 1,
        /// Being taken away by the administrator.
        Detaching = 2,
        /// Being taken away after an I/O error.
        Failed = 3,
        /// Attached while connected; the peers' view is awaited.
        Negotiating = 4,
        /// Data is partly old.
        Inconsistent = 5,
        /// Data is consistent but known to be old.
        Outdated = 6,
        /// Not known (not connected).
        DUnknown = 7,
        /// Consistent; whether it is old is not known.
        Consistent = 8,
        /// Up to date.
        UpToDate = 9,
    }
}

impl DiskState {
    /// The number of this state below version 110. Detaching does not exist there and goes as Failed.
    #[must_use]
    pub const fn to_wire_pre110(self) -> u8 {
        let number = self.as_u8();
        if number > DiskState::Detaching.as_u8() { number - 1 } else { number }
    }

    /// The state with this number below version 110.
    #[must_use]
    pub const fn from_wire_pre110(number: u8) -> Option<DiskState> {
        match number {
            0 | 1 => DiskState::from_u8(number),
            2..=8 => DiskState::from_u8(number + 1),
            _ => None,
        }
    }
}

numbered! {
    /// The state of a connection (section 2.2, left).
    #[derive(Default)]
    ConnState {
        /// Not connected and not trying.
        #[default]
        StandAlone = 0,
        /// On the way to StandAlone.
        Disconnecting = 1,
        /// About to try again.
        Unconnected = 2,
        /// The peer did not answer in time.
        Timeout = 3,
        /// The data stream ended.
        BrokenPipe = 4,
        /// No answer to pings.
        NetworkFailure = 5,
        /// The peer broke the protocol.
        ProtocolError = 6,
        /// The peer disconnected.
        TearDown = 7,
        /// Trying.
        Connecting = 8,
        /// Up.
        Connected = 9,
    }
}

numbered! {
    /// The replication state of a peer device (section 2.2, right).
    #[derive(Default)]
    ReplState {
        /// No replication.
        #[default]
        Off = 9,
        /// Ordinary replication.
        Established = 10,
        /// About to be source of a full sync.
        StartingSyncS = 11,
        /// About to be target of a full sync.
        StartingSyncT = 12,
        /// Bitmap exchange, source.
        WFBitMapS = 13,
        /// Bitmap exchange, target.
        WFBitMapT = 14,
        /// Waiting for the sync UUID (below 110).
        WFSyncUUID = 15,
        /// Resync, source.
        SyncSource = 16,
        /// Resync, target.
        SyncTarget = 17,
        /// Online verify, source.
        VerifyS = 18,
        /// Online verify, target.
        VerifyT = 19,
        /// Paused resync, source.
        PausedSyncS = 20,
        /// Paused resync, target.
        PausedSyncT = 21,
        /// Congested: only marks blocks out of sync.
        Ahead = 22,
        /// The peer is Ahead.
        Behind = 23,
    }
}

/// The `conn` field of a state word: one number line for connection (0..=9) and replication (9..=23)
/// states. 9 is Connected in two-phase commits and Off in P_STATE.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ConnField(u8);

impl ConnField {
    /// The field with this number, `None` above 23.
    #[must_use]
    pub const fn new(number: u8) -> Option<ConnField> {
        if number <= ReplState::Behind.as_u8() { Some(ConnField(number)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// As connection state: `None` above 9.
    #[must_use]
    pub const fn conn_state(self) -> Option<ConnState> {
        ConnState::from_u8(self.0)
    }

    /// As replication state: `None` below 9.
    #[must_use]
    pub const fn repl_state(self) -> Option<ReplState> {
        ReplState::from_u8(self.0)
    }
}

impl From<ConnState> for ConnField {
    fn from(state: ConnState) -> Self {
        ConnField(state.as_u8())
    }
}

impl From<ReplState> for ConnField {
    fn from(state: ReplState) -> Self {
        ConnField(state.as_u8())
    }
}

/// Why a state word makes no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum StateError {
    /// A role of 3.
    #[error("state word {word:#010x} has no role {role}")]
    BadRole {
        /// The whole word.
        word: u32,
        /// The number.
        role: u8,
    },
    /// A disk state above the last one.
    #[error("state word {word:#010x} has no disk state {disk}")]
    BadDisk {
        /// The whole word.
        word: u32,
        /// The number.
        disk: u8,
    },
    /// A connection state above the last one.
    #[error("state word {word:#010x} has no connection state {conn}")]
    BadConn {
        /// The whole word.
        word: u32,
        /// The number.
        conn: u8,
    },
}

flag_word! {
    /// A state word as it travels: the value of P_STATE, the mask and the value of a state change request.
    /// The constants are masks of the fields (all bits of a field set).
    StateBits: u32 {
        /// The sender's role.
        ROLE = 0x3,
        /// The receiver's role as the sender sees it.
        PEER = 0xc,
        /// Connection or replication state.
        CONN = 0x1f0,
        /// The sender's disk.
        DISK = 0x1e00,
        /// The receiver's disk as the sender sees it.
        PDSK = 0x1_e000,
        /// I/O suspended by the user.
        SUSP = 1 << 17,
        /// Resync paused by a dependency.
        AFTR_ISP = 1 << 18,
        /// Resync paused by the peer.
        PEER_ISP = 1 << 19,
        /// Resync paused by the user.
        USER_ISP = 1 << 20,
        /// I/O suspended: no data.
        SUSP_NOD = 1 << 21,
        /// I/O suspended: fencing.
        SUSP_FEN = 1 << 22,
        /// The sender has quorum (9 only).
        QUORUM = 1 << 23,
    }
}

impl StateBits {
    /// True if `self` as a mask names the (whole) field `field`.
    #[must_use]
    pub const fn names(self, field: StateBits) -> bool {
        self.contains(field)
    }

    const fn field(self, mask: StateBits) -> u8 {
        ((self.0 & mask.0) >> mask.0.trailing_zeros()) as u8
    }

    const fn put(mask: StateBits, number: u8) -> u32 {
        (number as u32) << mask.0.trailing_zeros()
    }

    /// The value of a request that sets the sender's role.
    #[must_use]
    pub const fn of_role(role: Role) -> StateBits {
        StateBits(Self::put(Self::ROLE, role.as_u8()))
    }

    /// The value of a request that sets the receiver's role.
    #[must_use]
    pub const fn of_peer(role: Role) -> StateBits {
        StateBits(Self::put(Self::PEER, role.as_u8()))
    }

    /// The value of a request that sets the connection or replication state.
    #[must_use]
    pub fn of_conn(conn: impl Into<ConnField>) -> StateBits {
        StateBits(Self::put(Self::CONN, conn.into().0))
    }

    /// The value of a request that sets the sender's disk state (9's number, not shifted).
    #[must_use]
    pub const fn of_disk(disk: DiskState) -> StateBits {
        StateBits(Self::put(Self::DISK, disk.as_u8()))
    }

    /// The value of a request that sets the receiver's disk state (9's number, not shifted).
    #[must_use]
    pub const fn of_pdsk(disk: DiskState) -> StateBits {
        StateBits(Self::put(Self::PDSK, disk.as_u8()))
    }

    /// The role field, `None` for 3.
    #[must_use]
    pub const fn role(self) -> Option<Role> {
        Role::from_u8(self.field(Self::ROLE))
    }

    /// The peer field, `None` for 3.
    #[must_use]
    pub const fn peer(self) -> Option<Role> {
        Role::from_u8(self.field(Self::PEER))
    }

    /// The conn field, `None` above 23.
    #[must_use]
    pub const fn conn(self) -> Option<ConnField> {
        ConnField::new(self.field(Self::CONN))
    }

    /// The disk field with 9's numbers, `None` above 9.
    #[must_use]
    pub const fn disk(self) -> Option<DiskState> {
        DiskState::from_u8(self.field(Self::DISK))
    }

    /// The pdsk field with 9's numbers, `None` above 9.
    #[must_use]
    pub const fn pdsk(self) -> Option<DiskState> {
        DiskState::from_u8(self.field(Self::PDSK))
    }

    /// This value with the fields that `mask` names taken from `val`.
    #[must_use]
    pub const fn with(self, mask: StateBits, val: StateBits) -> StateBits {
        StateBits(self.0 & !mask.0 | val.0 & mask.0)
    }

    /// The typed fields of a P_STATE at an agreed version; below 110 the disk states have 8.4's numbers.
    /// Bits 24..=31 are not looked at. Errors: a field has a number that means nothing.
    pub fn word(self, agreed: u32) -> Result<StateWord, StateError> {
        let word = self.0;
        let role = |mask| {
            let role = self.field(mask);
            Role::from_u8(role).ok_or(StateError::BadRole { word, role })
        };
        let disk = |mask| {
            let disk = self.field(mask);
            let state = if agreed < 110 { DiskState::from_wire_pre110(disk) } else { DiskState::from_u8(disk) };
            state.ok_or(StateError::BadDisk { word, disk })
        };
        let conn = self.field(Self::CONN);
        Ok(StateWord {
            role: role(Self::ROLE)?,
            peer: role(Self::PEER)?,
            conn: ConnField::new(conn).ok_or(StateError::BadConn { word, conn })?,
            disk: disk(Self::DISK)?,
            pdsk: disk(Self::PDSK)?,
            susp: self.contains(Self::SUSP),
            aftr_isp: self.contains(Self::AFTR_ISP),
            peer_isp: self.contains(Self::PEER_ISP),
            user_isp: self.contains(Self::USER_ISP),
            susp_nod: self.contains(Self::SUSP_NOD),
            susp_fen: self.contains(Self::SUSP_FEN),
            quorum: self.contains(Self::QUORUM),
        })
    }
}

/// The fields of a state word (section 1), seen from its sender.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Archive, Serialize, Deserialize)]
pub struct StateWord {
    /// The sender's role.
    pub role: Role,
    /// The receiver's role as the sender sees it.
    pub peer: Role,
    /// Connection or replication state.
    pub conn: ConnField,
    /// The sender's disk.
    pub disk: DiskState,
    /// The receiver's disk as the sender sees it.
    pub pdsk: DiskState,
    /// I/O suspended by the user.
    pub susp: bool,
    /// Resync paused by a dependency.
    pub aftr_isp: bool,
    /// Resync paused by the peer.
    pub peer_isp: bool,
    /// Resync paused by the user.
    pub user_isp: bool,
    /// I/O suspended: no data.
    pub susp_nod: bool,
    /// I/O suspended: fencing.
    pub susp_fen: bool,
    /// The sender has quorum (9 only).
    pub quorum: bool,
}

impl StateWord {
    /// The word as sent in P_STATE at an agreed version; below 110 with 8.4's disk numbers.
    #[must_use]
    pub fn bits(&self, agreed: u32) -> StateBits {
        let disk = |state: DiskState| {
            if agreed < 110 { state.to_wire_pre110() } else { state.as_u8() }
        };
        let mut bits = StateBits(
            StateBits::of_role(self.role).0
                | StateBits::of_peer(self.peer).0
                | StateBits::of_conn(self.conn).0
                | StateBits::put(StateBits::DISK, disk(self.disk))
                | StateBits::put(StateBits::PDSK, disk(self.pdsk)),
        );
        bits.set(StateBits::SUSP, self.susp);
        bits.set(StateBits::AFTR_ISP, self.aftr_isp);
        bits.set(StateBits::PEER_ISP, self.peer_isp);
        bits.set(StateBits::USER_ISP, self.user_isp);
        bits.set(StateBits::SUSP_NOD, self.susp_nod);
        bits.set(StateBits::SUSP_FEN, self.susp_fen);
        bits.set(StateBits::QUORUM, self.quorum);
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_state_words_of_the_recordings() {
        // First P_STATE of 9.3.3: Secondary, Connecting, Inconsistent, DUnknown, quorum.
        let word = StateBits(0x0080_ea82).word(124).unwrap();
        assert_eq!((word.role, word.peer), (Role::Secondary, Role::Unknown));
        assert_eq!(word.conn.conn_state(), Some(ConnState::Connecting));
        assert_eq!((word.disk, word.pdsk), (DiskState::Inconsistent, DiskState::DUnknown));
        assert!(word.quorum && !word.susp);
        assert_eq!(word.bits(124), StateBits(0x0080_ea82));
        // A connect: mask conn + role, value Connected + Primary.
        let (mask, val) = (StateBits(0x1f3), StateBits(0x91));
        assert!(mask.names(StateBits::ROLE) && mask.names(StateBits::CONN));
        assert!(!mask.names(StateBits::DISK));
        assert_eq!(val, StateBits::of_conn(ConnState::Connected) | StateBits::of_role(Role::Primary));
        // primary --force towards 8.4: disk numbers of requests are not shifted.
        assert_eq!(StateBits(0x1201).disk(), Some(DiskState::UpToDate));
    }

    #[test]
    fn wire_disk_states_shift_below_110() {
        let shifted: Vec<u8> = DiskState::ALL.iter().map(|d| d.to_wire_pre110()).collect();
        assert_eq!(shifted, [0, 1, 2, 2, 3, 4, 5, 6, 7, 8]);
        let back: Vec<_> = (0..=9).map(DiskState::from_wire_pre110).collect();
        assert_eq!(back[2], Some(DiskState::Failed));
        assert_eq!(back[8], Some(DiskState::UpToDate));
        assert_eq!(back[9], None);
    }

    #[test]
    fn wire_state_word_round_trips_and_refuses() {
        let mut word = StateWord { peer_isp: true, user_isp: true, ..StateWord::default() };
        for agreed in [101, 124] {
            for &disk in DiskState::ALL {
                if agreed < 110 && disk == DiskState::Detaching {
                    continue;
                }
                for conn in 0..=23 {
                    word = StateWord { conn: ConnField(conn), disk, pdsk: disk, ..word };
                    assert_eq!(word.bits(agreed).word(agreed), Ok(word));
                }
            }
        }
        assert!(matches!(StateBits(3).word(124), Err(StateError::BadRole { role: 3, .. })));
        assert!(matches!(StateBits(24 << 4).word(124), Err(StateError::BadConn { conn: 24, .. })));
        assert!(StateBits(9 << 9).word(124).is_ok());
        assert!(matches!(StateBits(9 << 9).word(101), Err(StateError::BadDisk { disk: 9, .. })));
    }

    #[test]
    fn wire_conn_field_is_one_number_line() {
        let nine = ConnField::new(9).unwrap();
        assert_eq!(nine.conn_state(), Some(ConnState::Connected));
        assert_eq!(nine.repl_state(), Some(ReplState::Off));
        assert_eq!(ConnField::new(24), None);
        assert_eq!(ConnField::from(ReplState::Behind).conn_state(), None);
        assert_eq!(ReplState::WFBitMapS.as_str(), "WFBitMapS");
    }
}
