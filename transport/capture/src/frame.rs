//! TCP segments in frames.

use std::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, LaxNetSlice, LaxSlicedPacket, TcpSlice, TransportSlice};

use crate::file::{Frame, Link};

/// Bytes of a Linux cooked header.
const SLL: usize = 16;
/// Likewise, of version 2.
const SLL2: usize = 20;

/// A TCP segment.
pub(crate) struct Tcp<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) sequence: u32,
    pub(crate) syn: bool,
    pub(crate) ack: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) data: &'a [u8],
}

/// The TCP segment in a frame; `None` if it has none, or only a fragment of one.
pub(crate) fn tcp(frame: &Frame) -> Option<Tcp<'_>> {
    // Lax: segments that the network card would have cut have no length in their IP header.
    let packet = slice(frame)?;
    let (from, to): (IpAddr, IpAddr) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) if !ip.is_payload_fragmented() => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        LaxNetSlice::Ipv6(ip) if !ip.is_payload_fragmented() => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        _ => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        return None;
    };
    Some(Tcp {
        from: SocketAddr::new(from, tcp.source_port()),
        to: SocketAddr::new(to, tcp.destination_port()),
        sequence: tcp.sequence_number(),
        syn: tcp.syn(),
        ack: tcp.ack(),
        fin: tcp.fin(),
        rst: tcp.rst(),
        data: payload(tcp),
    })
}

fn payload<'a>(tcp: &TcpSlice<'a>) -> &'a [u8] {
    tcp.slice().get(tcp.header_slice().len()..).unwrap_or_default()
}

fn slice(frame: &Frame) -> Option<LaxSlicedPacket<'_>> {
    let bytes = frame.bytes.as_slice();
    let cooked = |kind_at: usize, len: usize| {
        let kind = u16::from_be_bytes(bytes.get(kind_at..kind_at + 2)?.try_into().ok()?);
        Some(LaxSlicedPacket::from_ether_type(EtherType(kind), bytes.get(len..)?))
    };
    match frame.link {
        Link::Ethernet => LaxSlicedPacket::from_ethernet(bytes).ok(),
        Link::Ip => LaxSlicedPacket::from_ip(bytes).ok(),
        Link::Loopback => LaxSlicedPacket::from_ip(bytes.get(4..)?).ok(),
        Link::Sll => cooked(SLL - 2, SLL),
        Link::Sll2 => cooked(0, SLL2),
        Link::Other(_) => None,
    }
}
