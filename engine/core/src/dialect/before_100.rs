//! Versions 86 to 99, which DRBD 8.4 speaks too: what they lack, and what is done instead (wire-protocol.md 1, 3, 9; handshake-and-states.md
//! 6). They are offered only where the configuration asks for them, since
//!
//! * a packet has less data: requests are cut for it from the beginning, so that a write stays one packet with one acknowledgement;
//! * headers have no volume: there is volume 0 and no other;
//! * a write does not say which acknowledgement it wants, and below 95 not that it is to be stable: where more is needed than the configured
//!   protocol gives, the acknowledgement of the epoch is waited for, which comes when it is stable;
//! * below 96 nothing tells the peer of a write that it does not get: writes wait while bitmaps are exchanged, and any other such write
//!   ends the connection, so that bitmaps are exchanged again;
//! * below 91 some interrupted resyncs cannot be told from a split brain: the connection is refused (`uuid/table84.rs`);
//! * below 90 there are no bitmaps as run lengths, no verify that says where it begins, and no initial sync that is skipped, below 89 no
//!   checksums.

use zea_wire::flags::DpFlags;
use zea_wire::header::HeaderFormat;
use zea_wire::ids::VolumeNr;
use zea_wire::packet::{AlgName, Packet, Protocol as ProtocolPacket, SyncController, SyncParam, SyncParam89};
use zea_wire::state::{DiskState, ReplState};

use crate::config::{NetOptions, Protocol};
use crate::connection::Connection;
use crate::limits;
use crate::request::WriteReq;
use crate::resource::{Ctx, Resource};

/// The oldest version that is offered to an only peer together with this newest one. All that can be agreed on have packets of one size.
pub(crate) const fn oldest(newest: u32) -> u32 {
    match newest {
        0..=94 => 86,
        95..=99 => 95,
        _ => 100,
    }
}

impl NetOptions {
    /// The most data of a request in bytes, so that it fits into one packet for this peer.
    pub const fn max_bio_bytes(&self) -> u32 {
        zea_wire::features::max_bio_bytes(self.protocol_max)
    }
}

impl Connection {
    /// A version was agreed on, and it is an older one.
    fn speaks_before(&self, version: u32) -> bool {
        (86..version).contains(&self.version())
    }

    /// Headers name volumes, writes say which acknowledgement they want, and there are changes of state of the connection.
    pub(crate) fn has_volumes(&self) -> bool {
        !self.speaks_before(100)
    }

    /// There are words for a write that is not sent, and for a request that is put off (P_OUT_OF_SYNC, P_RS_CANCEL).
    pub(crate) fn tells_out_of_sync(&self) -> bool {
        !self.speaks_before(96)
    }

    /// Bitmaps may be run lengths, a verify says where it begins, and an initial sync can be skipped.
    pub(crate) fn has_run_lengths(&self) -> bool {
        !self.speaks_before(90)
    }

    /// There are requests with checksums.
    pub(crate) fn has_checksums(&self) -> bool {
        !self.speaks_before(89)
    }

    /// The header of a small packet.
    pub(crate) fn header_format(&self) -> HeaderFormat {
        HeaderFormat::for_version(self.version())
    }

    /// The most data of one packet in bytes.
    pub(crate) fn max_bio_bytes(&self) -> u32 {
        self.link.as_ref().map_or(limits::MAX_BIO_BYTES, |link| link.negotiated.max_bio_bytes())
    }

    /// What the peer says it takes at once, in bytes, if that is less than a packet may have: below 94 it takes no more.
    pub(crate) fn shorter_packets(&self, told: u32) -> Option<u32> {
        (self.speaks_before(94) && told > 0 && told < self.max_bio_bytes()).then_some(told)
    }

    /// The protocol of writes. Where they cannot say it, it is that of which both were sure when the link came up.
    pub(crate) fn write_protocol(&self) -> Protocol {
        let told = self.link.as_ref().map(|link| link.settings.protocol);
        told.filter(|_| !self.has_volumes()).unwrap_or(self.config.net.protocol)
    }

    /// What a write on this link says of itself.
    pub(crate) fn wishes(&self, protocol: Protocol, fua: bool) -> DpFlags {
        let mut flags = DpFlags::EMPTY;
        flags.set(DpFlags::SEND_RECEIVE_ACK, protocol == Protocol::B && self.has_volumes());
        flags.set(DpFlags::SEND_WRITE_ACK, protocol == Protocol::C && self.has_volumes());
        flags.set(DpFlags::FUA, fua && !self.speaks_before(95));
        flags
    }

    /// The flags of a write of the peer, with the acknowledgement that is meant where it cannot be asked for.
    pub(crate) fn wishes_of_peer(&self, mut flags: DpFlags) -> DpFlags {
        if !self.has_volumes() {
            flags.set(DpFlags::SEND_RECEIVE_ACK, self.write_protocol() == Protocol::B);
            flags.set(DpFlags::SEND_WRITE_ACK, self.write_protocol() == Protocol::C);
        }
        flags
    }

    /// P_SYNC_PARAM89, or P_SYNC_PARAM to whom does not know that, with what the version has of it.
    pub(crate) fn sync_param_packet(&self, mut param: SyncParam89) -> Packet {
        if self.speaks_before(95) {
            param.controller = SyncController::default();
        }
        if self.speaks_before(88) {
            param.verify_alg = AlgName::default();
        }
        if self.has_checksums() {
            return Packet::SyncParam89(Box::new(param));
        }
        Packet::SyncParam(SyncParam { resync_rate: param.resync_rate, verify_alg: param.verify_alg })
    }

    /// P_PROTOCOL with what the version has of it.
    pub(crate) fn protocol_packet(&self, mut protocol: ProtocolPacket) -> Packet {
        if self.speaks_before(87) {
            protocol.integrity_alg = AlgName::default();
        }
        Packet::Protocol(protocol)
    }
}

/// P_SYNC_PARAM of a peer. What it does not say is as it is here.
pub(crate) fn from_sync_param(version: u32, told: SyncParam, own: SyncParam89) -> SyncParam89 {
    SyncParam89 { verify_alg: if version < 88 { own.verify_alg } else { told.verify_alg }, ..own }
}

impl Resource {
    /// The most data of a read or write of the front end in bytes: what fits into one packet for each peer, by the configuration.
    pub fn max_bio_bytes(&self) -> u32 {
        self.conns.iter().map(|c| c.config.net.max_bio_bytes()).fold(limits::MAX_BIO_BYTES, u32::min)
    }

    /// Why this version cannot be spoken with these volumes.
    pub(crate) fn lacks_volumes(&self, version: u32) -> Option<String> {
        let other = self.volumes.iter().map(|v| v.nr).find(|nr| *nr != VolumeNr(0));
        let other = other.filter(|_| version < 100)?;
        Some(format!("version {version} of the protocol knows volume 0 only, and there is volume {other}"))
    }

    /// Writes wait: the bitmaps that are being exchanged would not have them.
    pub(crate) fn bitmaps_hold_writes(&self, vidx: usize) -> bool {
        self.conns.iter().any(|c| c.pds[vidx].repl == ReplState::WFBitMapS && !c.tells_out_of_sync())
    }

    /// An answer of this peer says that a write is where it has to be. If not, the end of its epoch does.
    pub(crate) fn ack_is_enough(&self, cidx: usize, w: &WriteReq) -> bool {
        let c = &self.conns[cidx];
        let unasked = w.req.fua && c.speaks_before(95);
        // Only that peer has the data, and may have received it, not more.
        let alone = self.volumes[w.vidx].disk != DiskState::UpToDate && c.write_protocol() != Protocol::C;
        !(unasked || (alone && !c.has_volumes()))
    }

    /// This write is done when its epoch is: that is to end soon.
    pub(crate) fn waits_for_its_epoch(&self, index: usize) -> bool {
        let w = &self.writes[index];
        let waits = |cidx: usize| w.waits.contains(self.conns[cidx].node()) && !self.ack_is_enough(cidx, w);
        (0..self.conns.len()).any(waits)
    }

    /// Peers that lack something of which they could not be told: the bits are set, and tell when bitmaps are exchanged again.
    pub(crate) fn tell_by_bitmaps(&mut self, cx: &mut Ctx<'_>) {
        for cidx in 0..self.conns.len() {
            if self.conns[cidx].is_up() && self.conns[cidx].pds.iter().any(|pd| pd.untold) {
                self.reconnect(cx, cidx, "it lacks writes, and this version of the protocol has no word for them");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sim_84_versions_that_can_be_agreed_on_have_packets_of_one_size() {
        for newest in (86..=101).chain(118..=limits::PROTOCOL_MAX) {
            let size = zea_wire::features::max_bio_bytes;
            assert_eq!(size(oldest(newest)), size(newest), "{newest}");
        }
    }
}
