//! The floor's secondary: does what the primary copies to it. One thread; serves one connection and ends.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::device::{announce, open_device};
use super::ring::{Event, TurnRing};
use super::wire::{BLOCK_BYTES, Kind, MAX_SLOTS, Operation, PEER_WRITE_BYTES};

const PRIMARY: usize = 0;

/// Runs the secondary: listens at `listen` (port 0 picks one), prints the address it got, and
/// serves the one primary that connects until that closes.
///
/// # Errors
/// Failing IO, and bytes that no primary of this kind sends.
pub fn secondary(listen: SocketAddr, device: &Path) -> Result<()> {
    let (disk, device_bytes) = open_device(device)?;
    let listener = TcpListener::bind(listen).with_context(|| format!("listen at {listen}"))?;
    announce(&listener.local_addr()?.to_string())?;
    let (primary, _) = listener.accept()?;
    primary.set_nodelay(true)?;

    let mut ring = TurnRing::new(vec![primary.into()], disk)?;
    let mut operations: Vec<Option<Operation>> = vec![None; MAX_SLOTS];
    let mut events = Vec::new();
    loop {
        ring.turn(&mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Received(stream) => {
                    while let Some(operation) = Operation::from_peer(ring.received(stream), BLOCK_BYTES)? {
                        let in_range = operation.offset <= device_bytes - BLOCK_BYTES as u64;
                        ensure!(in_range, "{operation:?} is beyond the device");
                        let before = operations[operation.slot].replace(operation);
                        ensure!(before.is_none(), "{operation:?} reuses a busy slot");
                        to_disk(&mut ring, operation);
                    }
                }
                Event::DiskDone(slot) => {
                    let operation = operations[slot].take().context("a slot without a use")?;
                    ring.send(PRIMARY, &operation.to_peer()[..operation.peer_bytes()]);
                }
                Event::Closed(_) => return Ok(()),
            }
        }
    }
}

/// Takes the operation from the front of the primary's bytes to the disk.
fn to_disk(ring: &mut TurnRing, operation: Operation) {
    match operation.kind {
        Kind::Write => {
            ring.load_block(operation.slot, PRIMARY, PEER_WRITE_BYTES);
            ring.consume(PRIMARY, PEER_WRITE_BYTES + BLOCK_BYTES);
            ring.write_block(operation.slot, operation.offset);
        }
        Kind::Flush => {
            ring.consume(PRIMARY, operation.peer_bytes());
            ring.sync_disk(operation.slot);
        }
    }
}
