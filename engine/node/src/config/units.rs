//! Values with a syntax of their own: sizes and addresses.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes in the unit that a suffix stands for; binary, as everywhere in DRBD.
const SUFFIXES: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

/// A size in bytes. Text form: a number with an optional suffix `K`, `M`, `G` or `T` (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// Sectors of 512 bytes.
    pub const fn sectors(self) -> u64 {
        self.0 / 512
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size: write a number with K, M, G or T behind it, such as \"256M\"");
        let last = text.chars().last().ok_or_else(wrong)?;
        let unit = SUFFIXES.iter().find(|(suffix, _)| suffix.eq_ignore_ascii_case(&last));
        let (digits, factor) = match unit {
            Some((_, factor)) => (&text[..text.len() - 1], *factor),
            None => (text, 1),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(factor).map(Size).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SUFFIXES.iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor)) {
            Some((suffix, factor)) => write!(f, "{}{suffix}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Where a node listens for its peers: `10.0.0.1:7789` or `[fd00::1]:7789`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(pub SocketAddr);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Address).map_err(|_| {
            format!("`{text}` is not an IP address with a port: write \"10.0.0.1:7789\" or \"[fd00::1]:7789\"")
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_size_reads_binary_suffixes() {
        for (text, bytes) in [("256M", 256 << 20), ("1g", 1 << 30), ("4096", 4096), ("8K", 8192), ("2T", 2 << 40)] {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn config_size_refuses_what_is_none() {
        for text in ["", "M", "-1M", "1.5G", "12 M", "1X", "99999999999999999999", "17179869184G", "１M", "5é"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn config_size_prints_what_it_reads() {
        for bytes in [0, 1, 512, 1024, 1536, 268_435_456, 1 << 40, (1 << 30) + (1 << 20)] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        assert_eq!(Size(268_435_456).to_string(), "256M");
    }

    #[test]
    fn config_address_wants_a_port() {
        assert!("127.0.0.1".parse::<Address>().is_err());
        assert!("alpha:7789".parse::<Address>().is_err());
        assert_eq!("[::1]:7789".parse::<Address>().map(|a| a.to_string()), Ok("[::1]:7789".into()));
    }
}
