//! Generation identifiers as text: 16 upper-case hex digits, `current:bitmap:history0:history1:` (reference section 8).

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Writes a UUID as the tools do: 16 upper-case hex digits.
#[must_use]
pub fn format_uuid(uuid: u64) -> String {
    format!("{uuid:016X}")
}

/// Reads a UUID of 1 to 16 hex digits, of either case.
///
/// # Errors
/// [`UuidError::Syntax`] on anything else.
pub fn parse_uuid(text: &str) -> Result<u64, UuidError> {
    let syntax = || UuidError::Syntax(text.chars().take(40).collect());
    if text.is_empty() || text.len() > 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(syntax());
    }
    u64::from_str_radix(text, 16).map_err(|_| syntax())
}

/// Why a text is no UUID or no set of UUIDs.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UuidError {
    /// Not 1 to 16 hex digits.
    #[error("not a UUID of up to 16 hex digits: {0:?}")]
    Syntax(String),
    /// Not four fields, each followed by a colon.
    #[error("expected four UUIDs separated by colons, found {0} fields")]
    FieldCount(usize),
}

/// The four UUIDs that the tools show for one peer: `get-gi` prints two of the 32 history entries of v09.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UuidSet {
    /// The current UUID of the data.
    pub current: u64,
    /// The bitmap UUID towards the peer, 0 if there is none.
    pub bitmap: u64,
    /// The two newest history UUIDs.
    pub history: [u64; 2],
}

impl fmt::Display for UuidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [h0, h1] = self.history;
        write!(f, "{:016X}:{:016X}:{h0:016X}:{h1:016X}:", self.current, self.bitmap)
    }
}

impl FromStr for UuidSet {
    type Err = UuidError;

    /// Reads `cur:bm:h0:h1`, with or without the colon at the end.
    fn from_str(text: &str) -> Result<Self, UuidError> {
        let body = text.strip_suffix(':').unwrap_or(text);
        let mut uuids = [0; 4];
        let mut count = 0;
        for field in body.split(':') {
            if let Some(slot) = uuids.get_mut(count) {
                *slot = parse_uuid(field)?;
            }
            count += 1;
        }
        if count != uuids.len() {
            return Err(UuidError::FieldCount(count));
        }
        let [current, bitmap, h0, h1] = uuids;
        Ok(Self { current, bitmap, history: [h0, h1] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn meta_uuid_text_is_upper_case_and_padded() {
        let set = UuidSet { current: 4, bitmap: 0xabc, history: [0, u64::MAX] };
        let text = "0000000000000004:0000000000000ABC:0000000000000000:FFFFFFFFFFFFFFFF:";
        assert_eq!(set.to_string(), text);
        assert_eq!(text.parse(), Ok(set));
        assert_eq!(text.trim_end_matches(':').parse(), Ok(set));
        assert_eq!(format_uuid(0xdead), "000000000000DEAD");
    }

    #[test]
    fn meta_uuid_text_errors_have_names() {
        for bad in ["", "G", "+1", "0x4", "00000000000000000", "é"] {
            assert!(matches!(parse_uuid(bad), Err(UuidError::Syntax(_))), "{bad:?}");
        }
        assert_eq!("4:0:0".parse::<UuidSet>(), Err(UuidError::FieldCount(3)));
        assert_eq!("4:0:0:0:0:".parse::<UuidSet>(), Err(UuidError::FieldCount(5)));
    }

    proptest! {
        #[test]
        fn meta_uuid_text_round_trip(current: u64, bitmap: u64, history: [u64; 2]) {
            let set = UuidSet { current, bitmap, history };
            prop_assert_eq!(set.to_string().parse(), Ok(set));
        }

        #[test]
        fn meta_uuid_text_never_panics(text: String) {
            let _ = text.parse::<UuidSet>();
        }
    }
}
