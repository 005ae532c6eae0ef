//! `[options]`: what a resource does without the other nodes.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zea_core::config::{OnNoQuorum, OnSuspendedPrimaryOutdated, Quorum, QuorumOptions};

/// A number of votes: `"off"`, `"majority"`, `"all"`, or 1 to 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Votes(pub Quorum);

impl Serialize for Votes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Quorum::Number(n) => serializer.serialize_u8(n),
            name => serializer.collect_str(&name),
        }
    }
}

impl<'de> Deserialize<'de> for Votes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u8),
            Name(String),
        }
        let text = match Either::deserialize(deserializer)? {
            Either::Number(n) => n.to_string(),
            Either::Name(name) => name,
        };
        text.parse().map(Votes).map_err(serde::de::Error::custom)
    }
}

super::model::by_name! {
    /// What becomes of the I/O of a Primary without quorum.
    #[derive(Default)]
    OnNoQuorumName(OnNoQuorum), "policy of on-no-quorum"
}

super::model::by_name! {
    /// What a Primary without quorum does when others went on without it.
    #[derive(Default)]
    OnOutdated(OnSuspendedPrimaryOutdated), "policy of on-suspended-primary-outdated"
}

/// `[options]`: options of the resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Options {
    /// Votes that a Primary needs.
    #[serde(skip_serializing_if = "is_default")]
    pub quorum: Votes,
    /// Of these, votes of UpToDate disks.
    #[serde(skip_serializing_if = "is_default")]
    pub quorum_minimum_redundancy: Votes,
    /// What becomes of I/O without them.
    #[serde(skip_serializing_if = "is_default")]
    pub on_no_quorum: OnNoQuorumName,
    /// What a Primary without quorum does when others went on without it.
    #[serde(skip_serializing_if = "is_default")]
    pub on_suspended_primary_outdated: OnOutdated,
    /// I/O that waits for quorum fails after this time; 0: never.
    #[serde(skip_serializing_if = "is_default")]
    pub suspended_io_timeout_ms: u64,
}

impl Options {
    /// As the core wants them.
    pub fn quorum_options(&self) -> QuorumOptions {
        QuorumOptions {
            quorum: self.quorum.0,
            minimum_redundancy: self.quorum_minimum_redundancy.0,
            on_no_quorum: self.on_no_quorum.0,
            on_suspended_primary_outdated: self.on_suspended_primary_outdated.0,
            suspended_io_timeout_ms: self.suspended_io_timeout_ms,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_quorum_is_a_name_or_a_number() {
        let read = |text: &str| toml::from_str::<Options>(text);
        for (text, quorum) in [
            ("quorum = \"off\"", Quorum::Off),
            ("quorum = \"majority\"", Quorum::Majority),
            ("quorum = \"all\"", Quorum::All),
            ("quorum = 2", Quorum::Number(2)),
            ("quorum = \"32\"", Quorum::Number(32)),
        ] {
            let options = read(text).unwrap();
            assert_eq!(options.quorum.0, quorum, "{text}");
            assert_eq!(read(&toml::to_string(&options).unwrap()).unwrap(), options, "{text}");
        }
        for text in ["quorum = \"most\"", "quorum = 0", "quorum = 33", "quorums = 2", "on-no-quorum = \"wait\""] {
            assert!(read(text).is_err(), "{text}");
        }
        let all = read(
            "quorum = \"majority\"\nquorum-minimum-redundancy = 2\non-no-quorum = \"io-error\"\n\
             on-suspended-primary-outdated = \"force-secondary\"\nsuspended-io-timeout-ms = 60000\n",
        );
        let expected = QuorumOptions {
            quorum: Quorum::Majority,
            minimum_redundancy: Quorum::Number(2),
            on_no_quorum: OnNoQuorum::IoError,
            on_suspended_primary_outdated: OnSuspendedPrimaryOutdated::ForceSecondary,
            suspended_io_timeout_ms: 60_000,
        };
        assert_eq!(all.unwrap().quorum_options(), expected);
    }
}
