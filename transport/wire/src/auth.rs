//! Challenge and response of `cram-hmac-alg` (`wire-protocol.md` section 6).
//!
//! Random challenges come from the caller. The secret is the bytes of `shared-secret` without a
//! terminator.

use hmac::{Hmac, KeyInit, Mac};
use thiserror::Error;

use crate::digest::Digest;
use crate::ids::NodeId;
use crate::packet::CHALLENGE_LEN;

/// The most bytes of a shared secret.
pub const MAX_SECRET_LEN: usize = 64;

/// Why authentication fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AuthError {
    /// The peer sent our own challenge back.
    #[error("the peer reflected our own challenge")]
    Reflection,
    /// The peer's response is not the HMAC of our challenge: another secret, or another algorithm.
    #[error("the peer's response is wrong")]
    WrongResponse,
}

/// The hash of the HMAC.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HmacAlg {
    /// md5
    Md5,
    /// sha1
    Sha1,
    /// sha256
    Sha256,
    /// sha512
    Sha512,
}

impl HmacAlg {
    /// The algorithm with the name of `cram-hmac-alg`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<HmacAlg> {
        Some(match name {
            "md5" => HmacAlg::Md5,
            "sha1" => HmacAlg::Sha1,
            "sha256" => HmacAlg::Sha256,
            "sha512" => HmacAlg::Sha512,
            _ => return None,
        })
    }

    /// The name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            HmacAlg::Md5 => "md5",
            HmacAlg::Sha1 => "sha1",
            HmacAlg::Sha256 => "sha256",
            HmacAlg::Sha512 => "sha512",
        }
    }
}

/// Refuses the peer's challenge if it is our own.
pub fn check_challenge(own: &[u8; CHALLENGE_LEN], peer: &[u8; CHALLENGE_LEN]) -> Result<(), AuthError> {
    if own == peer { Err(AuthError::Reflection) } else { Ok(()) }
}

/// Our response to the peer's challenge. `own_node_id` from version 110 on, else `None`.
#[must_use]
pub fn respond(
    alg: HmacAlg,
    secret: &[u8],
    peer_challenge: &[u8; CHALLENGE_LEN],
    own_node_id: Option<NodeId>,
) -> Digest {
    fn finish<M: Mac>(mac: M) -> Digest {
        Digest::new(&mac.finalize().into_bytes()).expect("a hash has 1..=64 bytes")
    }
    match alg {
        HmacAlg::Md5 => finish(mac::<Hmac<md5::Md5>>(secret, peer_challenge, own_node_id)),
        HmacAlg::Sha1 => finish(mac::<Hmac<sha1::Sha1>>(secret, peer_challenge, own_node_id)),
        HmacAlg::Sha256 => finish(mac::<Hmac<sha2::Sha256>>(secret, peer_challenge, own_node_id)),
        HmacAlg::Sha512 => finish(mac::<Hmac<sha2::Sha512>>(secret, peer_challenge, own_node_id)),
    }
}

/// Checks the peer's response to our challenge in constant time. `peer_node_id` from version 110 on,
/// else `None`.
pub fn check_response(
    alg: HmacAlg,
    secret: &[u8],
    own_challenge: &[u8; CHALLENGE_LEN],
    peer_node_id: Option<NodeId>,
    response: &[u8],
) -> Result<(), AuthError> {
    let verified = match alg {
        HmacAlg::Md5 => mac::<Hmac<md5::Md5>>(secret, own_challenge, peer_node_id).verify_slice(response),
        HmacAlg::Sha1 => mac::<Hmac<sha1::Sha1>>(secret, own_challenge, peer_node_id).verify_slice(response),
        HmacAlg::Sha256 => mac::<Hmac<sha2::Sha256>>(secret, own_challenge, peer_node_id).verify_slice(response),
        HmacAlg::Sha512 => mac::<Hmac<sha2::Sha512>>(secret, own_challenge, peer_node_id).verify_slice(response),
    };
    verified.map_err(|_| AuthError::WrongResponse)
}

/// The HMAC over a challenge and the node id of whoever responds.
fn mac<M: Mac + KeyInit>(secret: &[u8], challenge: &[u8; CHALLENGE_LEN], node_id: Option<NodeId>) -> M {
    let mut mac = <M as KeyInit>::new_from_slice(secret).expect("an HMAC takes keys of any length");
    mac.update(challenge);
    if let Some(node_id) = node_id {
        mac.update(&u32::from(node_id.0).to_be_bytes());
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALGS: [HmacAlg; 4] = [HmacAlg::Md5, HmacAlg::Sha1, HmacAlg::Sha256, HmacAlg::Sha512];

    #[test]
    fn wire_auth_accepts_only_the_right_response() {
        let challenge = [7; CHALLENGE_LEN];
        for alg in ALGS {
            assert_eq!(HmacAlg::from_name(alg.as_str()), Some(alg));
            for id in [None, Some(NodeId(1))] {
                let response = respond(alg, b"secret", &challenge, id);
                let digest = crate::digest::DigestAlg::from_name(alg.as_str()).unwrap();
                assert_eq!(response.as_slice().len(), digest.digest_len());
                let check = |secret: &[u8], id, response: &[u8]| check_response(alg, secret, &challenge, id, response);
                assert_eq!(check(b"secret", id, response.as_slice()), Ok(()));
                let wrong = Err(AuthError::WrongResponse);
                assert_eq!(check(b"Secret", id, response.as_slice()), wrong);
                assert_eq!(check(b"secret", Some(NodeId(2)), response.as_slice()), wrong);
                assert_eq!(check(b"secret", id, &response.as_slice()[1..]), wrong);
                assert_eq!(check(b"secret", id, &[]), wrong);
            }
        }
        assert_eq!(HmacAlg::from_name("rot13"), None);
    }

    #[test]
    fn wire_auth_refuses_a_reflected_challenge() {
        let own = [1; CHALLENGE_LEN];
        assert_eq!(check_challenge(&own, &own), Err(AuthError::Reflection));
        assert_eq!(check_challenge(&own, &[2; CHALLENGE_LEN]), Ok(()));
    }
}
