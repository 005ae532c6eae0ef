//! The initial packet: what the initiating side says first, so that the acceptor knows the socket's role.
//!
//! A header80 of length zero with `P_INITIAL_DATA` or `P_INITIAL_META`; there is no answer (`wire-protocol.md`
//! section 2.1).

use zea_wire::packet::command;
use zea_wire::{Header, HeaderFormat, Stream};

/// Bytes of the initial packet.
pub(crate) const LEN: usize = 8;

/// The initial packet that makes a socket the given stream.
pub(crate) fn encode(stream: Stream) -> [u8; LEN] {
    let header = Header {
        format: HeaderFormat::H80,
        raw_volume: Header::NO_VOLUME,
        command: match stream {
            Stream::Data => command::INITIAL_DATA,
            Stream::Control => command::INITIAL_META,
        },
        length: 0,
    };
    let mut bytes = [0; LEN];
    header.write(&mut bytes);
    bytes
}

/// The stream that an initial packet announces; `None` for any other bytes.
pub(crate) fn decode(bytes: &[u8; LEN]) -> Option<Stream> {
    [Stream::Data, Stream::Control].into_iter().find(|stream| encode(*stream) == *bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_initial_packets_have_the_recorded_bytes() {
        assert_eq!(encode(Stream::Data), [0x83, 0x74, 0x02, 0x67, 0xff, 0xf2, 0, 0]);
        assert_eq!(encode(Stream::Control), [0x83, 0x74, 0x02, 0x67, 0xff, 0xf1, 0, 0]);
    }

    #[test]
    fn tcp_initial_packet_with_any_bit_flipped_is_no_role_or_another() {
        for stream in [Stream::Data, Stream::Control] {
            let good = encode(stream);
            assert_eq!(decode(&good), Some(stream));
            for bit in 0..LEN * 8 {
                let mut bad = good;
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(&bad), None, "bit {bit} of {stream:?}");
            }
        }
    }
}
