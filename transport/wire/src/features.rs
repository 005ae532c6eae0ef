//! Version and feature negotiation (`wire-protocol.md` sections 1, 4, 5).

use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::digest::DigestAlg;
use crate::ids::NodeId;

flag_word! {
    /// Feature flags (section 5). Unknown bits are kept; the agreed set is the intersection of both.
    Features: u32 {
        /// P_TRIM may be sent.
        TRIM = 1,
        /// P_RS_THIN_REQ and P_RS_DEALLOCATED.
        THIN_RESYNC = 2,
        /// P_SIZES carries queue limits; discards up to 128 MiB.
        WSAME = 4,
        /// P_ZEROES and the difference between zeroing and discarding.
        WZEROES = 8,
        /// Resync and verify requests carry a dagtag dependency.
        RESYNC_DAGTAG = 16,
        /// Two-phase commit requests of version 2.
        TWOPC_V2 = 32,
        /// Diskless peers are told the new current UUID after a skipped initial sync.
        RS_SKIP_UUID = 64,
        /// P_ENABLE_REPLICATION and P_ENABLE_REPLICATION_NEXT.
        RESYNC_WITHOUT_REPLICATION = 128,
        /// The bitmap granularity in the queue limits is valid.
        BM_BLOCK_SHIFT = 256,
        /// P_PEER_DAGTAG may be sent during the connect handshake.
        RECONCILE_RECONNECT = 512,
        /// Private, unknown to kernel DRBD: both ends are Zea; every set bit of an UpToDate side is
        /// resynced at connect.
        ZEA_KEEP_BITS = 1 << 31,
    }
}

impl Features {
    /// What 8.4 offers.
    pub const DRBD_84: Features = Features(0x00f);
    /// What 9.3 offers.
    pub const DRBD_93: Features = Features(0x3ff);
}

wire_struct! {
    /// P_CONNECTION_FEATURES (section 4).
    ConnectionFeatures[72] {
        /// The lowest version the sender speaks.
        protocol_min: u32,
        /// The sender's features.
        feature_flags: Features,
        /// The highest version the sender speaks; 0 means `protocol_min`.
        protocol_max: u32,
        /// The sender's node id (0 from 8.4).
        sender_node_id: u32,
        /// The node id the sender expects of the receiver (0 from 8.4).
        receiver_node_id: u32,
        ; pad 52
    }
}

archived_as_bytes!(ConnectionFeatures);

impl ConnectionFeatures {
    /// The packet that `own` sends to `peer`.
    #[must_use]
    pub fn new(min: u32, max: u32, features: Features, own: NodeId, peer: NodeId) -> Self {
        ConnectionFeatures {
            protocol_min: min,
            feature_flags: features,
            protocol_max: max,
            sender_node_id: own.0.into(),
            receiver_node_id: peer.0.into(),
        }
    }

    const fn max(&self) -> u32 {
        if self.protocol_max == 0 { self.protocol_min } else { self.protocol_max }
    }
}

/// What both ends of a connection agreed on: decides headers, legal packets and layouts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Archive, Serialize, Deserialize)]
pub struct Negotiated {
    /// The agreed version; 80 before the feature exchange.
    pub version: u32,
    /// The agreed features.
    pub features: Features,
    /// data-integrity-alg: packets with bulk data carry a digest of it, in both directions.
    pub integrity_alg: Option<DigestAlg>,
}

impl Negotiated {
    /// Before the feature exchange: header80; only the initial packets, the feature packet and pings.
    pub const INITIAL: Negotiated = Negotiated { version: 80, features: Features::EMPTY, integrity_alg: None };

    /// Bytes of digest in packets with bulk data.
    #[must_use]
    pub const fn digest_len(&self) -> usize {
        match self.integrity_alg {
            Some(alg) => alg.digest_len(),
            None => 0,
        }
    }

    /// True if all of `features` were agreed.
    #[must_use]
    pub const fn has(&self, features: Features) -> bool {
        self.features.contains(features)
    }

    /// The largest data payload of one packet in bytes.
    #[must_use]
    pub const fn max_bio_bytes(&self) -> u32 {
        max_bio_bytes(self.version)
    }
}

/// The largest data payload of one packet of a version in bytes: 32 KiB below 95, 128 KiB below 100, then 1 MiB.
#[must_use]
pub const fn max_bio_bytes(version: u32) -> u32 {
    match version {
        0..=94 => 32 << 10,
        95..=99 => 128 << 10,
        _ => 1 << 20,
    }
}

/// Why two feature packets do not lead to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NegotiateError {
    /// The version ranges do not meet. StandAlone.
    #[error("incompatible versions: own {own_min}..={own_max}, peer {peer_min}..={peer_max}")]
    NoOverlap {
        /// Our lowest.
        own_min: u32,
        /// Our highest.
        own_max: u32,
        /// The peer's lowest.
        peer_min: u32,
        /// The peer's highest.
        peer_max: u32,
    },
    /// The agreed version is one of 102..=117, which nobody speaks any more. StandAlone.
    #[error("agreed version {agreed} is an incompatible dialect (102..=117)")]
    RefusedVersion {
        /// The version.
        agreed: u32,
    },
    /// Version 121 with RESYNC_DAGTAG acks merged discards wrongly. StandAlone.
    #[error("version 121 together with RESYNC_DAGTAG is a broken combination")]
    BrokenDagtag,
    /// The peer is not the configured one or takes us for another. Drop and **retry**.
    #[error(
        "peer presented node id {peer_sender} (expected {own_receiver}) and expects node id \
         {peer_receiver} (own {own_sender})"
    )]
    NodeIdMismatch {
        /// Who the peer says it is.
        peer_sender: u32,
        /// Whom we expect.
        own_receiver: u32,
        /// Whom the peer expects.
        peer_receiver: u32,
        /// Who we are.
        own_sender: u32,
    },
}

impl NegotiateError {
    /// True if the connection is to be tried again, false if it goes StandAlone.
    #[must_use]
    pub const fn is_retried(&self) -> bool {
        matches!(self, NegotiateError::NodeIdMismatch { .. })
    }
}

/// What follows from our own and the peer's feature packet (section 4). Both ends come to the same
/// result. Digest lengths are 0: P_PROTOCOL sets them later.
pub fn negotiate(own: &ConnectionFeatures, peer: &ConnectionFeatures) -> Result<Negotiated, NegotiateError> {
    let agreed = own.max().min(peer.max());
    if agreed < own.protocol_min || agreed < peer.protocol_min {
        return Err(NegotiateError::NoOverlap {
            own_min: own.protocol_min,
            own_max: own.max(),
            peer_min: peer.protocol_min,
            peer_max: peer.max(),
        });
    }
    if (102..=117).contains(&agreed) {
        return Err(NegotiateError::RefusedVersion { agreed });
    }
    let features = own.feature_flags & peer.feature_flags;
    if agreed == 121 && features.contains(Features::RESYNC_DAGTAG) {
        return Err(NegotiateError::BrokenDagtag);
    }
    let strangers = peer.sender_node_id != own.receiver_node_id || peer.receiver_node_id != own.sender_node_id;
    if agreed >= 110 && strangers {
        return Err(NegotiateError::NodeIdMismatch {
            peer_sender: peer.sender_node_id,
            own_receiver: own.receiver_node_id,
            peer_receiver: peer.receiver_node_id,
            own_sender: own.sender_node_id,
        });
    }
    Ok(Negotiated { version: agreed, features, ..Negotiated::INITIAL })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(a: (u32, u32, u32), b: (u32, u32, u32)) -> Result<Negotiated, NegotiateError> {
        let own = ConnectionFeatures::new(a.0, a.1, Features(a.2), NodeId(0), NodeId(1));
        let peer = ConnectionFeatures::new(b.0, b.1, Features(b.2), NodeId(1), NodeId(0));
        let result = negotiate(&own, &peer);
        assert_eq!(result.is_ok(), negotiate(&peer, &own).is_ok());
        result
    }

    #[test]
    fn wire_negotiation_takes_the_lower_maximum() {
        let agreed = pair((86, 124, 0x8000_03ff), (86, 124, 0x3ff)).unwrap();
        assert_eq!((agreed.version, agreed.features), (124, Features::DRBD_93));
        let agreed = pair((86, 124, 0x3ff), (86, 101, 0xf)).unwrap();
        assert_eq!((agreed.version, agreed.features), (101, Features::DRBD_84));
        assert_eq!(pair((90, 0, 0), (86, 101, 0)).unwrap().version, 90);
    }

    #[test]
    fn wire_negotiation_refuses() {
        assert!(matches!(pair((118, 124, 0), (86, 101, 0)), Err(NegotiateError::NoOverlap { .. })));
        for max in 102..=117 {
            let refused = pair((86, 124, 0), (86, max, 0));
            assert_eq!(refused, Err(NegotiateError::RefusedVersion { agreed: max }));
        }
        assert!(pair((86, 118, 0), (86, 124, 0)).is_ok());
        assert_eq!(pair((86, 121, 0x1f), (86, 124, 0x3ff)), Err(NegotiateError::BrokenDagtag));
        assert!(pair((86, 121, 0xf), (86, 124, 0x3ff)).is_ok());
        assert!(pair((86, 122, 0x1f), (86, 124, 0x3ff)).is_ok());
    }

    #[test]
    fn wire_negotiation_checks_node_ids_from_110_on() {
        let own = ConnectionFeatures::new(86, 124, Features::DRBD_93, NodeId(0), NodeId(1));
        let mut peer = ConnectionFeatures::new(86, 124, Features::DRBD_93, NodeId(2), NodeId(0));
        let error = negotiate(&own, &peer).unwrap_err();
        assert!(error.is_retried(), "{error}");
        peer = ConnectionFeatures { sender_node_id: 1, receiver_node_id: 5, ..peer };
        assert!(negotiate(&own, &peer).unwrap_err().is_retried());
        peer = ConnectionFeatures { protocol_max: 101, ..peer };
        assert_eq!(negotiate(&own, &peer).unwrap().version, 101);
    }
}
