//! What differs between two states of a core.

use std::fmt;

use serde_json::{Map, Value, json};
use zea_core::event::{ConnectionStatus, PeerDeviceStatus, Status};
use zea_meta::uuid::format_uuid;

/// One field of one object that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// `resource`, `device`, `connection`, `peer-device` or `notice`.
    object: &'static str,
    peer: Option<String>,
    volume: Option<u16>,
    /// As in `zea status --json`; of a notice its severity.
    field: &'static str,
    /// `None`: the object is new.
    from: Option<String>,
    to: String,
}

impl Change {
    pub(crate) fn notice(severity: &'static str, text: &str) -> Change {
        let (peer, volume, from) = Default::default();
        Change { object: "notice", peer, volume, field: severity, from, to: text.to_owned() }
    }

    /// As keys of an object of JSON.
    pub(crate) fn add_to(&self, object: &mut Map<String, Value>) {
        object.insert("object".into(), json!(self.object));
        object.extend(self.peer.iter().map(|peer| ("peer".into(), json!(peer))));
        object.extend(self.volume.map(|volume| ("volume".into(), json!(volume))));
        object.insert("field".into(), json!(self.field));
        object.extend(self.from.iter().map(|from| ("from".into(), json!(from))));
        object.insert("to".into(), json!(self.to));
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { object, peer, volume, field, from, to } = self;
        if *object == "notice" {
            return write!(f, "{field}: {to}");
        }
        let names = [peer.clone(), volume.map(|volume| format!("volume {volume}"))];
        let of = names.into_iter().flatten().collect::<Vec<_>>().join(" ");
        write!(f, "{object}{}{of} {field}: ", if of.is_empty() { "" } else { " " })?;
        match from {
            Some(from) => write!(f, "{from} -> {to}"),
            None => f.write_str(to),
        }
    }
}

/// What differs between two states, or, without a first one, what there is.
pub(crate) fn changes(before: Option<&Status>, now: &Status) -> Vec<Change> {
    let mut found = Finder { found: Vec::new(), object: "resource", peer: None, volume: None };
    found.field("role", before.map(|s| s.role), now.role);
    found.object = "device";
    for device in &now.devices {
        let old = before.and_then(|s| s.devices.iter().find(|d| d.volume == device.volume));
        found.volume = Some(device.volume.0);
        found.field("disk-state", old.map(|d| d.disk), device.disk);
        found.field("size", old.map(|d| d.size_sectors / 2), device.size_sectors / 2);
        found.field("current-uuid", old.map(|d| format_uuid(d.current_uuid)), format_uuid(device.current_uuid));
    }
    for connection in &now.connections {
        let old = before.and_then(|s| s.connections.iter().find(|c| c.peer == connection.peer));
        (found.object, found.volume) = ("connection", None);
        found.peer = Some(connection.name.clone());
        found.connection(old, connection);
        found.object = "peer-device";
        for device in &connection.peer_devices {
            let old = old.and_then(|c| c.peer_devices.iter().find(|d| d.volume == device.volume));
            found.volume = Some(device.volume.0);
            found.peer_device(old, device);
        }
    }
    found.found
}

struct Finder {
    found: Vec<Change>,
    object: &'static str,
    peer: Option<String>,
    volume: Option<u16>,
}

impl Finder {
    fn field<T: PartialEq + ToString>(&mut self, field: &'static str, from: Option<T>, to: T) {
        if from.as_ref() != Some(&to) {
            self.found.push(Change {
                object: self.object,
                peer: self.peer.clone(),
                volume: self.volume,
                field,
                from: from.map(|from| from.to_string()),
                to: to.to_string(),
            });
        }
    }

    fn connection(&mut self, old: Option<&ConnectionStatus>, now: &ConnectionStatus) {
        self.field("connection-state", old.map(|c| c.conn), now.conn);
        self.field("peer-role", old.map(|c| c.role), now.role);
        if now.version != 0 {
            self.field("protocol-version", old.map(|c| c.version), now.version);
        }
        if let Some(error) = &now.last_error {
            self.field("last-error", old.map(|c| c.last_error.clone().unwrap_or_default()), error.clone());
        }
    }

    /// How much is out of sync changes with every write: it is told where that begins and ends.
    fn peer_device(&mut self, old: Option<&PeerDeviceStatus>, now: &PeerDeviceStatus) {
        self.field("replication-state", old.map(|d| d.repl), now.repl);
        self.field("peer-disk-state", old.map(|d| d.peer_disk), now.peer_disk);
        self.field("resync-suspended", old.or(Some(now)).map(|d| d.paused_by), now.paused_by);
        let uuid = format_uuid(now.bitmap_uuid);
        self.field("bitmap-uuid", old.map(|d| format_uuid(d.bitmap_uuid)), uuid);
        if (now.out_of_sync_sectors == 0) != old.is_none_or(|d| d.out_of_sync_sectors == 0) {
            self.field("out-of-sync", old.map(|d| d.out_of_sync_sectors / 2), now.out_of_sync_sectors / 2);
        }
        self.field("unverified", old.or(Some(now)).map(|d| d.unverified), now.unverified);
    }
}
