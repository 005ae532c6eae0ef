//! Addresses of a path, their order, and the settings that go with them.

use std::net::SocketAddr;

use thiserror::Error;
use zea_wire::Stream;

/// How a connection is made between two addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathConfig {
    /// This node's address: listened on, and source of outgoing connections (with any port).
    pub own: SocketAddr,
    /// The peer's address.
    pub peer: SocketAddr,
    /// Timers and socket options.
    pub options: PathOptions,
}

/// Timers and socket options of a path (`wire-protocol.md` section 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathOptions {
    /// `timeout`: how long sent bytes may stay unacknowledged by the peer's TCP, milliseconds; 0 for the
    /// kernel's rule.
    pub timeout_ms: u32,
    /// `ping-timeout`, milliseconds. An accepted socket has four times that to introduce itself.
    pub ping_timeout_ms: u32,
    /// `connect-int`: the longest wait between two attempts, milliseconds. Waits vary by a seventh.
    pub connect_int_ms: u32,
    /// Longest time for one outgoing attempt, milliseconds.
    pub connect_timeout_ms: u32,
    /// `socket-check-timeout`: how long both sockets must have lived together before the pair counts,
    /// milliseconds; 0 for the ping timeout.
    pub socket_check_ms: u32,
    /// `sndbuf-size`, bytes; 0 lets the kernel choose.
    pub sndbuf_bytes: u32,
    /// `rcvbuf-size`, bytes; 0 lets the kernel choose.
    pub rcvbuf_bytes: u32,
}

impl Default for PathOptions {
    fn default() -> Self {
        PathOptions {
            timeout_ms: 6_000,
            ping_timeout_ms: 500,
            connect_int_ms: 1_000,
            connect_timeout_ms: 3_000,
            socket_check_ms: 100,
            sndbuf_bytes: 0,
            rcvbuf_bytes: 0,
        }
    }
}

impl PathOptions {
    /// Time an accepted socket has for its initial packet, milliseconds.
    pub(crate) fn initial_timeout_ms(&self) -> u64 {
        4 * u64::from(self.ping_timeout_ms)
    }

    /// Time both sockets must have lived together, milliseconds.
    pub(crate) fn check_ms(&self) -> u64 {
        match self.socket_check_ms {
            0 => u64::from(self.ping_timeout_ms),
            ms => u64::from(ms),
        }
    }
}

/// Why two addresses do not make a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PathError {
    /// One is IPv4, the other IPv6.
    #[error("{own} and {peer} are of different address families")]
    Family {
        /// This node's address.
        own: SocketAddr,
        /// The peer's address.
        peer: SocketAddr,
    },
    /// An address without a definite host or port; both sides compare addresses, so they must be the real ones.
    #[error("{0} is not the address of one host and port")]
    Unspecified(SocketAddr),
    /// Both ends are the same.
    #[error("{0} cannot be its own peer")]
    Same(SocketAddr),
}

impl PathConfig {
    /// Checks the addresses. Errors: see [`PathError`].
    pub(crate) fn check(&self) -> Result<(), PathError> {
        let (own, peer) = (self.own, self.peer);
        if own.is_ipv4() != peer.is_ipv4() {
            return Err(PathError::Family { own, peer });
        }
        for addr in [own, peer] {
            if addr.port() == 0 || addr.ip().is_unspecified() || addr.ip().is_multicast() {
                return Err(PathError::Unspecified(addr));
            }
        }
        if own == peer {
            return Err(PathError::Same(own));
        }
        Ok(())
    }

    /// What the first outgoing socket becomes: data for the node with the greater raw address, else control.
    /// Both nodes see the mirrored result, so normally each initiates one of the two.
    pub(crate) fn first_outgoing(&self) -> Stream {
        if raw_sockaddr(&self.own) > raw_sockaddr(&self.peer) { Stream::Data } else { Stream::Control }
    }
}

const AF_INET: u16 = rustix::net::AddressFamily::INET.as_raw();
const AF_INET6: u16 = rustix::net::AddressFamily::INET6.as_raw();

/// The bytes of the C socket address: family in host order, port in network order, the address (for IPv6
/// with flow label before and scope behind). The padding behind an IPv4 address is zero on both sides.
fn raw_sockaddr(addr: &SocketAddr) -> Vec<u8> {
    let mut raw = Vec::with_capacity(28);
    match addr {
        SocketAddr::V4(v4) => {
            raw.extend_from_slice(&AF_INET.to_ne_bytes());
            raw.extend_from_slice(&v4.port().to_be_bytes());
            raw.extend_from_slice(&v4.ip().octets());
        }
        SocketAddr::V6(v6) => {
            raw.extend_from_slice(&AF_INET6.to_ne_bytes());
            raw.extend_from_slice(&v6.port().to_be_bytes());
            raw.extend_from_slice(&v6.flowinfo().to_ne_bytes());
            raw.extend_from_slice(&v6.ip().octets());
            raw.extend_from_slice(&v6.scope_id().to_ne_bytes());
        }
    }
    raw
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(own: &str, peer: &str) -> PathConfig {
        PathConfig { own: own.parse().unwrap(), peer: peer.parse().unwrap(), options: PathOptions::default() }
    }

    #[test]
    fn tcp_raw_sockaddr_is_family_port_address() {
        let raw = raw_sockaddr(&"10.1.2.3:7788".parse().unwrap());
        let family = 2u16.to_ne_bytes();
        assert_eq!(raw, [family[0], family[1], 0x1e, 0x6c, 10, 1, 2, 3]);
    }

    #[test]
    fn tcp_the_greater_address_initiates_data() {
        let cases = [
            ("127.0.0.2:7788", "127.0.0.1:7788"),
            // The port comes before the address.
            ("127.0.0.1:7789", "127.0.0.2:7788"),
            // Bytes, not numbers in host order.
            ("127.0.0.1:512", "127.0.0.1:257"),
            ("[fe80::2]:1", "[fe80::1]:1"),
        ];
        for (greater, smaller) in cases {
            assert_eq!(path(greater, smaller).first_outgoing(), Stream::Data, "{greater}");
            assert_eq!(path(smaller, greater).first_outgoing(), Stream::Control, "{smaller}");
        }
    }

    #[test]
    fn tcp_bad_paths_are_refused() {
        let refused = |own, peer| path(own, peer).check().unwrap_err();
        assert!(matches!(refused("127.0.0.1:1", "[::1]:1"), PathError::Family { .. }));
        assert!(matches!(refused("0.0.0.0:1", "127.0.0.1:1"), PathError::Unspecified(_)));
        assert!(matches!(refused("127.0.0.1:1", "127.0.0.2:0"), PathError::Unspecified(_)));
        assert!(matches!(refused("127.0.0.1:1", "127.0.0.1:1"), PathError::Same(_)));
        assert_eq!(path("127.0.0.1:1", "127.0.0.1:2").check(), Ok(()));
    }

    #[test]
    fn tcp_check_time_zero_means_ping_timeout() {
        let mut options = PathOptions::default();
        assert_eq!(options.check_ms(), 100);
        options.socket_check_ms = 0;
        assert_eq!(options.check_ms(), 500);
        assert_eq!(options.initial_timeout_ms(), 2_000);
    }
}
