//! What the demo found.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// The summary. What was not reached is false or missing: nothing is right by default.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// Everything that was to be proved was proved.
    pub(crate) verified: bool,
    /// The backing devices were equal byte for byte after the resync.
    pub(crate) replicas_equal: bool,
    /// Acknowledged commits that the surviving volume does not have. Missing if they were not counted.
    pub(crate) lost_commits: Option<u64>,
    /// Acknowledged commits.
    pub(crate) commits: u64,
    /// Commits that survived although their end was never reported to the client.
    pub(crate) unacknowledged_commits: u64,
    /// Blocks that fio had written when the Primary died, and found afterwards. Missing without a file system.
    pub(crate) fio_blocks_verified: Option<u64>,
    pub(crate) frontend: &'static str,
    pub(crate) filesystem: &'static str,
    /// From `kill -9` of the Primary until the volume is in use elsewhere: mounted, or open.
    pub(crate) failover_ms: Option<u64>,
    /// From `kill -9` of the Primary until the other node is Primary.
    pub(crate) promote_ms: Option<u64>,
    pub(crate) initial_sync_ms: Option<u64>,
    pub(crate) secondary_resync_ms: Option<u64>,
    pub(crate) primary_resync_ms: Option<u64>,
    pub(crate) volume_mib: u32,
    pub(crate) replicas: usize,
    pub(crate) elapsed_ms: u64,
    /// What failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Where the logs are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logs: Option<PathBuf>,
}

impl Summary {
    /// One line of JSON.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings become JSON")
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |value: Option<u64>| value.map_or("not reached".to_owned(), |it| it.to_string());
        let time = |value: Option<u64>| value.map_or("not reached".to_owned(), |it| format!("{it} ms"));
        let yes = |value: bool| if value { "yes" } else { "NO" };
        let rows = [
            ("verified", yes(self.verified).to_owned()),
            ("replicas equal", yes(self.replicas_equal).to_owned()),
            ("acknowledged commits", self.commits.to_string()),
            ("lost commits", known(self.lost_commits)),
            ("blocks verified by fio", self.fio_blocks_verified.map_or("-".to_owned(), |it| it.to_string())),
            ("front end", self.frontend.to_owned()),
            ("file system", self.filesystem.to_owned()),
            ("failover", time(self.failover_ms)),
            ("  of it until promoted", time(self.promote_ms)),
            ("initial sync", time(self.initial_sync_ms)),
            ("resync of the Secondary", time(self.secondary_resync_ms)),
            ("resync of the old Primary", time(self.primary_resync_ms)),
            ("all of it", time(Some(self.elapsed_ms))),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:<27}{value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_summary_promises_nothing_by_default() {
        let json: serde_json::Value = serde_json::from_str(&Summary::default().json()).unwrap();
        assert_eq!(json["verified"], false);
        assert_eq!(json["replicas_equal"], false);
        assert!(json["lost_commits"].is_null() && json["failover_ms"].is_null());
        assert!(json.get("error").is_none());
        assert!(Summary::default().to_string().contains("not reached"));
    }

    #[test]
    fn demo_summary_has_the_keys_that_were_agreed_on() {
        let summary = Summary {
            verified: true,
            replicas_equal: true,
            lost_commits: Some(0),
            commits: 7,
            frontend: "nbdfuse+loop",
            filesystem: "ext4",
            failover_ms: Some(321),
            ..Summary::default()
        };
        let json = summary.json();
        assert!(json.starts_with(r#"{"verified":true,"replicas_equal":true,"lost_commits":0,"commits":7,"#), "{json}");
        for part in [r#""frontend":"nbdfuse+loop","filesystem":"ext4""#, r#""failover_ms":321"#] {
            assert!(json.contains(part), "{json}");
        }
        assert!(!json.contains('\n'));
    }
}
