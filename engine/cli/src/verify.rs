//! `zea verify`: begins a verify, and with `--wait` shows how it goes and what it found.

use std::thread;
use std::time::Duration;

use indicatif::HumanBytes;
use serde::Serialize;
use zea_node::api::{ConnectionStatus, Done, Request, ResourceStatus, VerifyResult};
use zea_node::control::Client;

use crate::exit::{self, CliError};
use crate::{view, wait};

/// How often the status is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// What was found on one peer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Found {
    name: String,
    volume: u16,
    conn_name: String,
    #[serde(flatten)]
    result: VerifyResult,
}

/// Gives the request and waits for the end if that is wanted.
pub(crate) fn verify(
    client: &mut Client,
    name: &str,
    request: &Request,
    wait: bool,
    json: bool,
) -> Result<(), CliError> {
    let Request::Verify { peer, volume, .. } = request else { unreachable!("made by the caller") };
    let before = wait::status(client, name)?;
    let done: Done = client.call(request)?;
    done.notes.iter().for_each(|note| eprintln!("{note}"));
    if !wait {
        return Ok(());
    }
    let asked = |connection: &ConnectionStatus| match peer {
        Some(peer) => *peer == connection.name || *peer == connection.peer_node_id.to_string(),
        None => before.connections.iter().any(|c| c.name == connection.name && c.connection_state == "Connected"),
    };
    let resource = finished(client, name)?;
    let mut all = Vec::new();
    for connection in resource.connections.iter().filter(|connection| asked(connection)) {
        for it in &connection.peer_devices {
            if let Some(result) = it.last_verify
                && volume.is_none_or(|volume| volume == it.volume)
            {
                let (name, conn_name) = (resource.name.clone(), connection.name.clone());
                all.push(Found { name, volume: it.volume, conn_name, result });
            }
        }
    }
    report(&all, json)
}

/// Looks at the status until no verify runs.
fn finished(client: &mut Client, name: &str) -> Result<ResourceStatus, CliError> {
    let mut bar = wait::Bar::default();
    loop {
        let resource = wait::status(client, name)?;
        if !wait::verifies(&resource) {
            bar.finish();
            return Ok(resource);
        }
        bar.show(&resource);
        thread::sleep(INTERVAL);
    }
}

/// Prints what was found. Copies that differ, and a verify that did not come to its end, are failures.
fn report(all: &[Found], json: bool) -> Result<(), CliError> {
    if json {
        println!("{}", view::json_text(&all)?);
    } else {
        for Found { name, volume, conn_name, result } in all {
            let bytes = |kib: u64| HumanBytes(kib * 1024);
            let (compared, skipped) = (bytes(result.compared), bytes(result.skipped));
            let end = if result.complete { "" } else { "interrupted: " };
            let different = bytes(result.out_of_sync);
            println!(
                "{name}/{volume} {conn_name}: {end}{compared} compared, {skipped} skipped, {different} out of sync"
            );
        }
    }
    if let Some(found) = all.iter().find(|found| found.result.out_of_sync > 0) {
        let Found { name, volume, conn_name, .. } = found;
        let message = format!(
            "{name}/{volume} differs between this node and {conn_name}. To copy the Primary's blocks over the others: zea \
             disconnect {name} {conn_name}, then zea connect {name} {conn_name}. If the Primary's are the wrong ones, demote it, then there: \
             zea invalidate {name} {volume}"
        );
        return Err(CliError::new(exit::FAILED, message));
    }
    match all.iter().find(|found| !found.result.complete) {
        None => Ok(()),
        Some(Found { name, conn_name, .. }) => {
            let message = format!("the verify was interrupted; `zea verify {name} {conn_name}` goes on where it ended");
            Err(CliError::new(exit::FAILED, message))
        }
    }
}
