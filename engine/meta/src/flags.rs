//! The flag words of super blocks (reference sections 2 and 3).
//!
//! Unknown bits are kept as they are, so that a newer writer's flags survive a read and a write.

use std::fmt;
use std::ops::BitOr;

macro_rules! flag_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$flag_doc:meta])* $flag:ident = $value:expr;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub u32);

        // Archived (in snapshots and recordings, which are Zea's own formats) as the word's bytes.
        impl rkyv::Archive for $name {
            type Archived = [u8; 4];
            type Resolver = ();

            fn resolve(&self, _: (), out: rkyv::Place<Self::Archived>) {
                rkyv::Archive::resolve(&self.0.to_le_bytes(), [(); 4], out);
            }
        }

        impl<S: rkyv::rancor::Fallible + ?Sized> rkyv::Serialize<S> for $name {
            fn serialize(&self, _: &mut S) -> Result<(), S::Error> {
                Ok(())
            }
        }

        impl<D: rkyv::rancor::Fallible + ?Sized> rkyv::Deserialize<$name, D> for [u8; 4] {
            fn deserialize(&self, _: &mut D) -> Result<$name, D::Error> {
                Ok($name(u32::from_le_bytes(*self)))
            }
        }

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self($value);)*

            /// Every flag that has a name, with its name.
            pub const NAMED: &'static [(Self, &'static str)] = &[$((Self::$flag, stringify!($flag)),)*];

            /// No flag set.
            pub const fn empty() -> Self {
                Self(0)
            }

            /// The word as it lies on disk.
            pub const fn bits(self) -> u32 {
                self.0
            }

            /// Whether all of `other` is set.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether any of `other` is set.
            pub const fn intersects(self, other: Self) -> bool {
                self.0 & other.0 != 0
            }

            /// Sets all of `other`.
            pub const fn insert(&mut self, other: Self) {
                self.0 |= other.0;
            }

            /// Clears all of `other`.
            pub const fn remove(&mut self, other: Self) {
                self.0 &= !other.0;
            }

            /// Sets or clears all of `other`.
            pub const fn set(&mut self, other: Self, on: bool) {
                if on {
                    self.insert(other);
                } else {
                    self.remove(other);
                }
            }
        }

        impl BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x}", stringify!($name), self.0)?;
                for (flag, name) in Self::NAMED {
                    if self.contains(*flag) {
                        write!(f, " {name}")?;
                    }
                }
                f.write_str(")")
            }
        }
    };
}

flag_set! {
    /// Flags of the device in a v09 super block.
    DeviceFlags {
        /// The disk state is above Inconsistent.
        CONSISTENT = 0x001;
        /// This node or a connected peer is or was Primary and writes may be in flight: replay the activity log after a crash.
        PRIMARY_IND = 0x002;
        /// The disk state is above Outdated.
        WAS_UP_TO_DATE = 0x010;
        /// Was Primary at a crash; kept until both sides are UpToDate.
        CRASHED_PRIMARY = 0x040;
        /// The activity log has been applied. Never set while attached.
        AL_CLEAN = 0x080;
        /// The activity log is not kept, its content tells nothing.
        AL_DISABLED = 0x100;
        /// Was Primary when it lost quorum.
        PRIMARY_LOST_QUORUM = 0x200;
        /// Had quorum.
        HAVE_QUORUM = 0x400;
        /// Zea's own: died while writes were in flight, and has not been made equal since to a copy that did not.
        ZEA_LOST_WRITES = 0x0100_0000;
        /// Zea's own: has got its generation from a neighbour of a Primary that this node does not see, and that goes on in it.
        ZEA_BEHIND = 0x0200_0000;
        /// Zea's own: the disk of a Primary that died, or one that was resynced from it; in the generation of its death.
        ZEA_WAS_PRIMARY = 0x0400_0000;
    }
}

flag_set! {
    /// Flags of one peer in a v09 super block.
    PeerFlags {
        /// The replication state was above Off.
        CONNECTED = 0x1;
        /// The peer's disk is known to be Inconsistent to Outdated.
        OUTDATED = 0x2;
        /// A fencing policy other than dont-care applies to the peer.
        FENCING = 0x4;
        /// All bits of the peer count as set: a full bitmap write has not finished.
        FULL_SYNC = 0x8;
        /// The peer's disk has been seen.
        DEVICE_SEEN = 0x10;
        /// There is evidence that this node id is part of the cluster.
        NODE_EXISTS = 0x1_0000;
        /// Zea's own: a resync from this peer has begun, and the disk is not consistent yet.
        ZEA_SYNC_SOURCE = 0x0100_0000;
        /// The peer has a bitmap slot. Only in memory: encoding drops it, decoding never sets it.
        HAVE_BITMAP = 0x8000_0000;
    }
}

flag_set! {
    /// Flags of a v08 super block.
    V08Flags {
        /// The disk state is above Inconsistent.
        CONSISTENT = 0x001;
        /// This node or the peer is or was Primary and writes may be in flight: replay the activity log after a crash.
        PRIMARY_IND = 0x002;
        /// The replication state was above Off.
        CONNECTED_IND = 0x004;
        /// All bits count as set: a full bitmap write has not finished.
        FULL_SYNC = 0x008;
        /// The disk state is above Outdated.
        WAS_UP_TO_DATE = 0x010;
        /// The peer's disk is known to be Outdated or worse.
        PEER_OUT_DATED = 0x020;
        /// Was Primary at a crash; kept until both sides are UpToDate.
        CRASHED_PRIMARY = 0x040;
        /// The activity log has been applied. Never set while attached.
        AL_CLEAN = 0x080;
        /// The activity log is not kept, its content tells nothing.
        AL_DISABLED = 0x100;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_flags_insert_remove_contains() {
        let mut flags = DeviceFlags::CONSISTENT | DeviceFlags(0x8000);
        flags.insert(DeviceFlags::PRIMARY_IND);
        assert!(flags.contains(DeviceFlags::CONSISTENT | DeviceFlags::PRIMARY_IND));
        flags.remove(DeviceFlags::CONSISTENT);
        assert!(!flags.contains(DeviceFlags::CONSISTENT | DeviceFlags::PRIMARY_IND));
        assert!(flags.intersects(DeviceFlags::CONSISTENT | DeviceFlags::PRIMARY_IND));
        flags.set(DeviceFlags::PRIMARY_IND, false);
        assert_eq!(flags.bits(), 0x8000);
        assert_eq!(format!("{:?}", PeerFlags(0x10010)), "PeerFlags(0x10010 DEVICE_SEEN NODE_EXISTS)");
    }
}
