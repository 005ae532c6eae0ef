//! `zea status --json`, as far as the demo reads it, and what may be concluded from it.

use anyhow::{Context, Result};
use serde::Deserialize;

/// A resource as one node sees it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Resource {
    pub(crate) role: String,
    pub(crate) devices: Vec<Device>,
    pub(crate) connections: Vec<Connection>,
}

/// A volume of that node.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Device {
    pub(crate) volume: u16,
    pub(crate) disk_state: String,
    /// Usable size in KiB.
    pub(crate) size: u64,
}

/// A peer of that node.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Connection {
    pub(crate) name: String,
    pub(crate) connection_state: String,
    #[serde(rename = "peer_devices")]
    pub(crate) peer_devices: Vec<PeerDevice>,
}

/// A volume of a peer.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct PeerDevice {
    pub(crate) replication_state: String,
    pub(crate) peer_disk_state: String,
    /// KiB.
    pub(crate) out_of_sync: u64,
    pub(crate) percent_resync_done: Option<f64>,
}

/// Reads the answer of `zea status NAME --json`.
pub(crate) fn parse(text: &str) -> Result<Resource> {
    let mut list: Vec<Resource> = serde_json::from_str(text).context("`zea status --json` is not what it should be")?;
    list.pop().context("`zea status --json` has no resource")
}

impl Resource {
    /// Nothing if this node and all its peers are UpToDate and equal; else what is missing.
    pub(crate) fn not_synced(&self) -> Option<String> {
        if let Some(device) = self.devices.iter().find(|it| it.disk_state != "UpToDate") {
            return Some(format!("its volume {} is {}", device.volume, device.disk_state));
        }
        self.connections.iter().find_map(Connection::not_synced)
    }

    /// A peer by name.
    pub(crate) fn peer(&self, name: &str) -> Result<&Connection> {
        let found = self.connections.iter().find(|it| it.name == name);
        found.with_context(|| format!("the status does not name {name}"))
    }

    /// The resyncs that run, for people.
    pub(crate) fn progress(&self) -> Option<String> {
        let running: Vec<String> = self.connections.iter().filter_map(Connection::progress).collect();
        (!running.is_empty()).then(|| running.join(", "))
    }
}

impl Connection {
    /// KiB that the peer misses.
    pub(crate) fn out_of_sync(&self) -> u64 {
        self.peer_devices.iter().map(|it| it.out_of_sync).sum()
    }

    fn not_synced(&self) -> Option<String> {
        let name = &self.name;
        if self.connection_state != "Connected" {
            return Some(format!("the connection to {name} is {}", self.connection_state));
        }
        if self.peer_devices.is_empty() {
            return Some(format!("{name} has no volume"));
        }
        let behind = self.peer_devices.iter().find(|it| {
            it.replication_state != "Established" || it.peer_disk_state != "UpToDate" || it.out_of_sync != 0
        })?;
        Some(format!(
            "{name} is {}, replication {}, {} KiB out of sync",
            behind.peer_disk_state, behind.replication_state, behind.out_of_sync
        ))
    }

    fn progress(&self) -> Option<String> {
        self.peer_devices.iter().find_map(|it| {
            let percent = it.percent_resync_done?;
            let (state, left) = (&it.replication_state, it.out_of_sync);
            Some(format!("{} {state} {percent:.0} %, {left} KiB to go", self.name))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(disk: &str, connection: &str, replication: &str, peer: &str, left: u64) -> Resource {
        let text = serde_json::json!([{
            "name": "demo", "node-id": 0, "role": "Primary", "suspended": false,
            "devices": [{"volume": 0, "disk-state": disk, "size": 262_144, "open": true}],
            "connections": [{
                "name": "bravo", "connection-state": connection, "peer-role": "Secondary",
                "peer_devices": [{
                    "volume": 0, "replication-state": replication, "peer-disk-state": peer,
                    "out-of-sync": left, "percent-resync-done": 12.5,
                }],
            }],
        }]);
        parse(&text.to_string()).unwrap()
    }

    #[test]
    fn demo_status_is_synced_only_when_everything_is() {
        let synced = status("UpToDate", "Connected", "Established", "UpToDate", 0);
        assert_eq!(synced.not_synced(), None);
        for (other, why) in [
            (status("Inconsistent", "Connected", "Established", "UpToDate", 0), "volume 0 is Inconsistent"),
            (status("UpToDate", "Connecting", "Established", "UpToDate", 0), "to bravo is Connecting"),
            (status("UpToDate", "Connected", "SyncSource", "UpToDate", 0), "replication SyncSource"),
            (status("UpToDate", "Connected", "Established", "Outdated", 0), "bravo is Outdated"),
            (status("UpToDate", "Connected", "Established", "UpToDate", 4), "4 KiB out of sync"),
        ] {
            let found = other.not_synced().unwrap();
            assert!(found.contains(why), "{found}");
        }
    }

    #[test]
    fn demo_status_tells_progress() {
        let resource = status("UpToDate", "Connected", "SyncSource", "Inconsistent", 100);
        assert_eq!(resource.progress().unwrap(), "bravo SyncSource 12 %, 100 KiB to go");
        assert_eq!(resource.peer("bravo").unwrap().out_of_sync(), 100);
        assert!(resource.peer("delta").is_err());
    }

    #[test]
    fn demo_status_refuses_what_it_does_not_know() {
        for text in ["", "[]", "{}", "[{\"role\": 3}]"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
