//! The floor's two replicas: the primary, which a client writes to, and the secondary, which the
//! primary copies every operation to. One thread each; each serves one connection and ends.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::ring::{Event, TurnRing};
use super::wire::{BLOCK_BYTES, Kind, MAX_SLOTS, Operation, PEER_WRITE_BYTES, REQUEST_BYTES, to_reply};

const CLIENT: usize = 0;
const PEER: usize = 1;

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

    const PRIMARY: usize = 0;
    let mut ring = TurnRing::new(vec![primary.into()], Some(disk))?;
    let mut operations: Vec<Option<Operation>> = vec![None; MAX_SLOTS];
    let mut events = Vec::new();
    loop {
        ring.turn(&mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Received(stream) => {
                    while let Some(operation) = Operation::from_peer(ring.received(stream), BLOCK_BYTES)? {
                        start(&mut operations, operation, device_bytes)?;
                        if operation.kind == Kind::Write {
                            ring.load_block(operation.slot, PRIMARY, PEER_WRITE_BYTES);
                        }
                        ring.consume(PRIMARY, consumed_of_peer(operation));
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

/// Runs the primary: connects to the secondary, listens at the Unix socket `socket`, prints that
/// path, greets the one client that connects with the device's size, and serves it.
///
/// # Errors
/// Failing IO, a secondary that goes away, and bytes that no client of this kind sends.
pub fn primary(socket: &Path, secondary: SocketAddr, device: &Path) -> Result<()> {
    let (disk, device_bytes) = open_device(device)?;
    let peer = TcpStream::connect(secondary).with_context(|| format!("connect to the secondary at {secondary}"))?;
    peer.set_nodelay(true)?;
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    announce(&socket.display().to_string())?;
    let (mut client, _) = listener.accept()?;
    client.write_all(&device_bytes.to_be_bytes())?;

    let mut ring = TurnRing::new(vec![client.into(), peer.into()], Some(disk))?;
    let mut operations: Vec<Option<Operation>> = vec![None; MAX_SLOTS];
    // Which of an operation's two legs is the last is known by counting them.
    let mut open_legs = [0_u8; MAX_SLOTS];
    let mut events = Vec::new();
    loop {
        ring.turn(&mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Received(CLIENT) => {
                    while let Some(operation) = Operation::from_request(ring.received(CLIENT))? {
                        start(&mut operations, operation, device_bytes)?;
                        open_legs[operation.slot] = 2;
                        replicate(&mut ring, operation);
                    }
                }
                Event::Received(_) => {
                    while let Some(ack) = Operation::from_peer(ring.received(PEER), 0)? {
                        ensure!(operations[ack.slot] == Some(ack), "an ack for what was not sent: {ack:?}");
                        ring.consume(PEER, ack.peer_bytes());
                        leg_done(&mut ring, &mut operations, &mut open_legs, ack.slot)?;
                    }
                }
                Event::DiskDone(slot) => {
                    leg_done(&mut ring, &mut operations, &mut open_legs, slot)?;
                }
                Event::Closed(CLIENT) => return Ok(()),
                Event::Closed(_) => bail!("the secondary has closed the connection"),
            }
        }
    }
}

/// Sends the operation at the front of the client's bytes down both legs.
fn replicate(ring: &mut TurnRing, operation: Operation) {
    ring.send(PEER, &operation.to_peer()[..operation.peer_bytes()]);
    if operation.kind == Kind::Write {
        ring.load_block(operation.slot, CLIENT, REQUEST_BYTES);
        ring.send_block(PEER, operation.slot);
        ring.consume(CLIENT, REQUEST_BYTES + BLOCK_BYTES);
    } else {
        ring.consume(CLIENT, REQUEST_BYTES);
    }
    to_disk(ring, operation);
}

fn leg_done(
    ring: &mut TurnRing,
    operations: &mut [Option<Operation>],
    open_legs: &mut [u8],
    slot: usize,
) -> Result<()> {
    open_legs[slot] = open_legs[slot].checked_sub(1).context("a leg ended twice")?;
    if open_legs[slot] == 0 {
        operations[slot] = None;
        ring.send(CLIENT, &to_reply(slot));
    }
    Ok(())
}

fn to_disk(ring: &mut TurnRing, operation: Operation) {
    match operation.kind {
        Kind::Write => ring.write_block(operation.slot, operation.offset),
        Kind::Flush => ring.sync_disk(operation.slot),
    }
}

fn consumed_of_peer(operation: Operation) -> usize {
    match operation.kind {
        Kind::Write => operation.peer_bytes() + BLOCK_BYTES,
        Kind::Flush => operation.peer_bytes(),
    }
}

/// Notes that `operation` is in flight.
///
/// # Errors
/// A slot that already has one, and an offset beyond the device.
fn start(operations: &mut [Option<Operation>], operation: Operation, device_bytes: u64) -> Result<()> {
    let in_range = operation.offset <= device_bytes - BLOCK_BYTES as u64;
    ensure!(in_range, "{operation:?} is beyond the device");
    let before = operations[operation.slot].replace(operation);
    ensure!(before.is_none(), "{operation:?} reuses a busy slot");
    Ok(())
}

/// Opens a file or a block device for direct IO and finds its size in bytes.
fn open_device(path: &Path) -> Result<(File, u64)> {
    let mut disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("open {} for direct IO", path.display()))?;
    let bytes = disk.seek(SeekFrom::End(0))?;
    ensure!(bytes >= BLOCK_BYTES as u64, "{} is smaller than one block", path.display());
    Ok((disk, bytes))
}

/// Tells whoever started this process that it listens, and where.
fn announce(address: &str) -> Result<()> {
    println!("{address}");
    std::io::stdout().flush()?;
    Ok(())
}
