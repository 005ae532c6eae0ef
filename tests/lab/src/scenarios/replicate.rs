//! Connect, copy, write, change roles.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::DEVICE_BYTES;
use super::pair::Side::{self, Kernel, Zea};
use super::pair::{
    Load, connected_pair, demote, fill, finish, fio, promote, promote_first, scribble, synced_pair, wait_synced,
};
use crate::Lab;

/// The first copy, of data that was there before, and of writes meanwhile.
fn initial_sync(lab: &mut Lab, primary: Side) -> Result<()> {
    connected_pair(lab, 'C')?;
    scribble(lab, primary)?;
    promote_first(lab, primary)?;
    fill(lab, primary, 1024, 512, 0x5a)?;
    wait_synced(lab)?;
    let packets = finish(lab, primary)?;
    let copied = packets.payload_since(Duration::ZERO, "P_RS_DATA_REPLY");
    ensure!(copied as u64 >= DEVICE_BYTES - (1 << 20), "{copied} bytes were copied");
    Ok(())
}

/// Zea has the data.
pub fn interop_zea_primary_syncs_a_kernel(lab: &mut Lab) -> Result<()> {
    initial_sync(lab, Zea)
}

/// The kernel has the data.
pub fn interop_kernel_primary_syncs_zea(lab: &mut Lab) -> Result<()> {
    initial_sync(lab, Kernel)
}

/// Random writes that are verified. With protocol A no write is acknowledged by itself, with B when it was received.
fn writes(lab: &mut Lab, primary: Side, protocol: char) -> Result<()> {
    lab.give("fio");
    synced_pair(lab, protocol, primary)?;
    fio(lab, primary)?;
    let packets = finish(lab, primary)?;
    let [writes, received, written] = ["P_DATA", "P_RECV_ACK", "P_WRITE_ACK"].map(|name| packets.count(name));
    let as_wanted = match protocol {
        'A' => received == 0 && written == 0,
        'B' => received > 100 && written == 0,
        _ => received == 0 && written > 100,
    };
    ensure!(writes > 100 && as_wanted, "{protocol}: {writes} writes, {received} received, {written} written");
    Ok(())
}

/// Zea writes, protocol A.
pub fn interop_zea_primary_writes_by_protocol_a(lab: &mut Lab) -> Result<()> {
    writes(lab, Zea, 'A')
}

/// Zea writes, protocol B.
pub fn interop_zea_primary_writes_by_protocol_b(lab: &mut Lab) -> Result<()> {
    writes(lab, Zea, 'B')
}

/// Zea writes, protocol C.
pub fn interop_zea_primary_writes_by_protocol_c(lab: &mut Lab) -> Result<()> {
    writes(lab, Zea, 'C')
}

/// The kernel writes, protocol A.
pub fn interop_kernel_primary_writes_by_protocol_a(lab: &mut Lab) -> Result<()> {
    writes(lab, Kernel, 'A')
}

/// The kernel writes, protocol B.
pub fn interop_kernel_primary_writes_by_protocol_b(lab: &mut Lab) -> Result<()> {
    writes(lab, Kernel, 'B')
}

/// The kernel writes, protocol C.
pub fn interop_kernel_primary_writes_by_protocol_c(lab: &mut Lab) -> Result<()> {
    writes(lab, Kernel, 'C')
}

/// The role goes back and forth, with writes by each Primary.
pub fn interop_roles_swap_twenty_times_under_load(lab: &mut Lab) -> Result<()> {
    synced_pair(lab, 'C', Zea)?;
    let mut primary = Zea;
    for _ in 0..20 {
        Load::begin(lab, primary)?.stop(lab)?;
        demote(lab, primary)?;
        primary = if primary == Zea { Kernel } else { Zea };
        promote(lab, primary)?;
    }
    finish(lab, primary).map(drop)
}
