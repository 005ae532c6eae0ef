//! Answers as text.

use std::fmt::Write;
use std::io::IsTerminal;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use zea_node::api::{
    BlockDevices, ConnectionStatus, DeviceStatus, Event, Listed, PeerDeviceStatus, ResourceStatus, StatusReply,
};

use crate::exit::{self, CliError};

/// A reply of the daemon as JSON, with a line end; a status is in the shape of `drbdsetup status --json`.
pub(crate) fn json(reply: &impl Serialize) -> Result<String, CliError> {
    Ok(json_text(reply)? + "\n")
}

/// Anything as indented JSON.
pub(crate) fn json_text(value: &impl Serialize) -> Result<String, CliError> {
    serde_json::to_string_pretty(value).map_err(|error| CliError::new(exit::FAILED, error.to_string()))
}

/// One event as one line.
pub(crate) fn json_line(event: &Event) -> Result<String, CliError> {
    serde_json::to_string(event).map_err(|error| CliError::new(exit::FAILED, error.to_string()))
}

/// The status for people.
pub(crate) fn status(reply: &StatusReply, verbose: bool) -> String {
    let mut text = String::new();
    if !reply.resources.is_empty() {
        let mut table = table(&[
            "RESOURCE",
            "ROLE",
            "VOL",
            "DISK",
            "SIZE",
            "PEER",
            "CONNECTION",
            "PEER ROLE",
            "REPLICATION",
            "PEER DISK",
            "OUT OF SYNC",
        ]);
        reply.resources.iter().for_each(|resource| rows(&mut table, resource));
        let _ = writeln!(text, "{}", table.trim_fmt());
    }
    for resource in &reply.resources {
        notes(&mut text, resource);
        if verbose {
            details(&mut text, resource);
        }
    }
    for name in &reply.down {
        let _ = writeln!(text, "{name} is down (zea up {name})");
    }
    for broken in &reply.broken {
        let _ = writeln!(text, "{} could not be read: {}", broken.name, broken.error);
    }
    if verbose && !text.is_empty() {
        block_devices(&mut text, &reply.block_devices);
    }
    if text.is_empty() {
        text.push_str("no resources (zea resource create --help)\n");
    }
    text
}

/// The configured resources.
pub(crate) fn list(listed: &[Listed]) -> String {
    if listed.is_empty() {
        return "no resources (zea resource create --help)\n".into();
    }
    let mut table = table(&["RESOURCE", "WANTED", "NODES", "VOLUME", "DISK", "NBD ADDRESS"]);
    for resource in listed {
        for (index, volume) in resource.volumes.iter().enumerate() {
            let once = |text: &str| {
                if index == 0 { text.to_owned() } else { String::new() }
            };
            table.add_row([
                once(&resource.name),
                once(if resource.up { "up" } else { "down" }),
                once(&resource.nodes.join(" ")),
                volume.nr.to_string(),
                volume.disk.clone(),
                volume.export.clone(),
            ]);
        }
    }
    format!("{}\n", table.trim_fmt())
}

/// An empty table in the style of all tables here.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table.set_content_arrangement(ContentArrangement::Disabled);
    if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        table.force_no_tty();
    }
    // Columns stand apart by two blanks and begin at the left edge.
    for index in 0..header.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
        }
    }
    table
}

/// One row per volume and peer; what repeats is left out.
fn rows(table: &mut Table, resource: &ResourceStatus) {
    let mut first = true;
    for device in &resource.devices {
        let mut first_of_volume = true;
        let mut begin = || {
            let mut row = vec![Cell::new(""); 5];
            if std::mem::take(&mut first) {
                row[0] = Cell::new(&resource.name).add_attribute(Attribute::Bold);
                row[1] = role(&resource.role);
            }
            if std::mem::take(&mut first_of_volume) {
                row[2] = Cell::new(device.volume);
                row[3] = disk(&device.disk_state);
                row[4] = Cell::new(if device.size == 0 { "?".into() } else { size(device.size) });
            }
            row
        };
        if resource.connections.is_empty() {
            table.add_row(begin());
        }
        for connection in &resource.connections {
            let mut row = begin();
            row.extend(peer(connection, device));
            table.add_row(row);
        }
    }
}

fn peer(connection: &ConnectionStatus, device: &DeviceStatus) -> Vec<Cell> {
    let mut row = vec![
        Cell::new(&connection.name),
        coloured(
            &connection.connection_state,
            match connection.connection_state.as_str() {
                "Connected" => Color::Green,
                "StandAlone" => Color::Red,
                _ => Color::Yellow,
            },
        ),
        role(&connection.peer_role),
    ];
    let found = connection.peer_devices.iter().find(|peer_device| peer_device.volume == device.volume);
    row.extend(found.map_or_else(Vec::new, |peer_device| {
        vec![replication(peer_device), disk(&peer_device.peer_disk_state), Cell::new(out_of_sync(peer_device))]
    }));
    row
}

fn coloured(text: &str, color: Color) -> Cell {
    Cell::new(text).fg(color)
}

fn role(role: &str) -> Cell {
    if role == "Primary" { coloured(role, Color::Cyan).add_attribute(Attribute::Bold) } else { Cell::new(role) }
}

fn disk(state: &str) -> Cell {
    coloured(
        state,
        match state {
            "UpToDate" => Color::Green,
            "Diskless" | "Failed" => Color::Red,
            _ => Color::Yellow,
        },
    )
}

fn replication(peer_device: &PeerDeviceStatus) -> Cell {
    let mut text = peer_device.replication_state.clone();
    if let Some(percent) = peer_device.percent_resync_done {
        let _ = write!(text, " {percent:.2}%");
    }
    if let Some(rate) = peer_device.resync_rate {
        let _ = write!(text, " {}/s", size(rate));
    }
    if peer_device.resync_suspended != "no" {
        let _ = write!(text, " (paused: {})", peer_device.resync_suspended);
    }
    match peer_device.percent_resync_done {
        Some(_) => coloured(&text, Color::Yellow),
        None => Cell::new(text),
    }
}

fn out_of_sync(peer_device: &PeerDeviceStatus) -> String {
    match peer_device.out_of_sync {
        0 => "0".into(),
        kib => size(kib),
    }
}

/// What needs attention.
fn notes(text: &mut String, resource: &ResourceStatus) {
    let waits = if resource.suspended_quorum {
        "; I/O waits for that (to end it: zea down, or disconnect --force)"
    } else {
        ""
    };
    for why in resource.devices.iter().filter_map(|device| device.no_quorum.as_ref()) {
        let _ = writeln!(text, "{}: quorum:no: {why}{waits}", resource.name);
    }
    for connection in &resource.connections {
        let (name, peer) = (&resource.name, &connection.name);
        if connection.connection_state != "Connected"
            && let Some(error) = &connection.last_error
        {
            let _ = writeln!(text, "{name}: {peer}: {error}");
        }
        if let Some(end) = &connection.last_split_brain {
            let _ = writeln!(text, "{name}: {peer}: {end}");
        }
        for peer_device in connection.peer_devices.iter().filter(|peer_device| peer_device.unverified) {
            let nr = peer_device.volume;
            let _ = writeln!(
                text,
                "{name}/{nr}: {peer} ignored out-of-sync marks, and they are not compared yet: zea verify {name} {peer}"
            );
        }
    }
}

fn block_devices(text: &mut String, devices: &BlockDevices) {
    if let Some(features) = &devices.features {
        let _ = writeln!(text, "block devices by ublk, whose driver has: {features}");
    }
    if let Some(why) = &devices.missing {
        let _ = writeln!(text, "no block devices: {why}");
    }
}

fn details(text: &mut String, resource: &ResourceStatus) {
    let name = &resource.name;
    for device in &resource.devices {
        let nr = device.volume;
        if let (Some(link), Some(node)) = (&device.device, &device.device_node) {
            let _ = writeln!(text, "{name}/{nr}: {link} ({node})");
        }
        let _ = writeln!(text, "{name}/{nr}: {}", device.export);
        let _ = writeln!(
            text,
            "{name}/{nr}: backing device {}, current UUID {}, {} open, read {}, written {}, {} activity log writes, {} bitmap writes",
            device.backing_dev,
            device.current_uuid,
            device.open_count,
            size(device.read),
            size(device.written),
            device.al_writes,
            device.bm_writes
        );
    }
    for connection in &resource.connections {
        for path in &connection.paths {
            let (this, remote) = (&path.this_host, &path.remote_host);
            let (peer, version) = (&connection.name, connection.protocol_version);
            let _ = writeln!(
                text,
                "{name}: {peer}: {} port {} to {} port {}, protocol version {version}",
                this.address, this.port, remote.address, remote.port
            );
        }
        for peer_device in &connection.peer_devices {
            let _ = writeln!(
                text,
                "{name}/{}: {}: sent {}, received {}, bitmap UUID {}",
                peer_device.volume,
                connection.name,
                size(peer_device.sent),
                size(peer_device.received),
                peer_device.bitmap_uuid
            );
        }
    }
}

/// A number of KiB with a unit that keeps it short.
fn size(kib: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = kib as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 { format!("{value} {}", units[unit]) } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cli_sizes_are_short() {
        for (kib, text) in [(0, "0 KiB"), (4, "4 KiB"), (1536, "1.5 MiB"), (262_144, "256 MiB"), (1 << 30, "1 TiB")] {
            assert_eq!(size(kib), text);
        }
        assert_eq!(size(u64::MAX), "16777216 PiB");
    }

    #[test]
    fn cli_nothing_configured_says_so() {
        assert!(status(&StatusReply::default(), true).contains("no resources"));
        assert!(list(&[]).contains("no resources"));
    }
}
