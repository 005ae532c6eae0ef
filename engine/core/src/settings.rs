//! P_PROTOCOL: what two nodes must have configured alike (wire-protocol.md 8.3).

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::digest::DigestAlg;
use zea_wire::flags::ConnFlags;
use zea_wire::packet::{AlgName, Protocol as ProtocolPacket};
use zea_wire::state::ConnState;

use crate::config::{AfterSb0Pri, AfterSb1Pri, NetOptions, Protocol};
use crate::connection::LinkPhase;
use crate::io::Action;
use crate::resource::{Ctx, Resource};
use crate::uuid::AfterSplitBrain;

/// What this node has configured for a link. It counts as it was when the link came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) protocol: Protocol,
    pub(crate) integrity_alg: Option<DigestAlg>,
    after_sb_0pri: AfterSb0Pri,
    after_sb_1pri: AfterSb1Pri,
    pub(crate) discard_my_data: bool,
}

impl Settings {
    pub(crate) fn new(net: &NetOptions, discard_my_data: bool) -> Settings {
        Settings {
            protocol: net.protocol,
            integrity_alg: net.integrity_alg,
            after_sb_0pri: net.after_sb_0pri,
            after_sb_1pri: net.after_sb_1pri,
            discard_my_data,
        }
    }

    pub(crate) fn after_split_brain(&self) -> AfterSplitBrain {
        AfterSplitBrain { no_primary: self.after_sb_0pri, one_primary: self.after_sb_1pri }
    }

    fn packet(&self) -> ProtocolPacket {
        let integrity_alg = self.integrity_alg.and_then(|alg| AlgName::new(alg.as_str()));
        ProtocolPacket {
            protocol: self.protocol.number(),
            after_sb_0p: self.after_sb_0pri.number(),
            after_sb_1p: self.after_sb_1pri.number(),
            after_sb_2p: 0,
            conn_flags: if self.discard_my_data { ConnFlags::DISCARD_MY_DATA } else { ConnFlags::EMPTY },
            two_primaries: 0,
            integrity_alg: integrity_alg.unwrap_or_default(),
        }
    }

    /// Why these do not go together with what the peer has.
    fn conflict(&self, peer: &ProtocolPacket) -> Option<String> {
        let own = self.packet();
        let numbers = [
            ("protocol", own.protocol, peer.protocol),
            ("after-sb-0pri", own.after_sb_0p, seen_from_here(peer.after_sb_0p)),
            ("after-sb-1pri", own.after_sb_1p, peer.after_sb_1p),
            ("after-sb-2pri", own.after_sb_2p, peer.after_sb_2p),
            ("allow-two-primaries", own.two_primaries, peer.two_primaries),
        ];
        if let Some((key, ..)) = numbers.into_iter().find(|(_, own, peer)| own != peer) {
            return Some(format!("incompatible settings: {key} differs"));
        }
        if own.integrity_alg != peer.integrity_alg {
            let shown = |alg: &AlgName| if alg.is_empty() { "not set".to_owned() } else { alg.as_str().to_owned() };
            let (own, peer) = (shown(&own.integrity_alg), shown(&peer.integrity_alg));
            return Some(format!("incompatible settings: data-integrity-alg is {own} here and {peer} there"));
        }
        let both = self.discard_my_data && peer.conn_flags.contains(ConnFlags::DISCARD_MY_DATA);
        both.then(|| "both sides want to discard their data".to_owned())
    }
}

/// What the peer calls local is remote here.
fn seen_from_here(after_sb_0p: u32) -> u32 {
    let [local, remote] = [AfterSb0Pri::DiscardLocal.number(), AfterSb0Pri::DiscardRemote.number()];
    match after_sb_0p {
        number if number == local => remote,
        number if number == remote => local,
        number => number,
    }
}

impl Resource {
    pub(crate) fn send_protocol(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let packet = self.conns[cidx].link.as_ref().expect("it is being set up").settings.packet();
        let packet = self.conns[cidx].protocol_packet(packet);
        self.send(cx, cidx, None, packet);
        if self.conns[cidx].speaks_84() {
            self.handshake_send(cx, cidx);
        }
    }

    /// P_PROTOCOL: both sides must be configured alike.
    pub(crate) fn protocol(&mut self, cx: &mut Ctx<'_>, cidx: usize, peer: &ProtocolPacket) {
        let link = self.conns[cidx].link.as_ref().expect("a packet came on it");
        if link.phase != LinkPhase::Protocol {
            let why = "the peer does not authenticate (it has no cram-hmac-alg configured)";
            return if matches!(link.phase, LinkPhase::AuthChallenge | LinkPhase::AuthResponse) {
                self.stand_alone(cx, cidx, why)
            } else {
                self.drop_link(cx, cidx, ConnState::ProtocolError, "P_PROTOCOL at the wrong time")
            };
        }
        if let Some(why) = link.settings.conflict(peer) {
            return self.stand_alone(cx, cidx, &why);
        }
        if link.settings.integrity_alg.is_some() {
            self.agree_on_digests(cx, cidx);
        }
        let link = self.conns[cidx].link.as_mut().expect("a packet came on it");
        let deadline = link.phase_deadline.filter(|_| link.states_sent);
        self.phase(cidx, LinkPhase::Connecting, deadline);
        self.conns[cidx].retry_at = None;
        self.want_connect(cidx);
    }

    /// From here on packets with data have a digest of it, in both directions: whoever reads them from the link checks it.
    fn agree_on_digests(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let peer = self.conns[cidx].node();
        let link = self.conns[cidx].link.as_mut().expect("a packet came on it");
        link.negotiated.integrity_alg = link.settings.integrity_alg;
        cx.out.push(Action::SetNegotiated { peer, link: link.id, negotiated: link.negotiated });
    }
}
