//! Nodes and links that fail, and data that diverged.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::pair::Side::{self, Kernel, Zea};
use super::pair::{
    Load, SOON, demote, fill, finish, now, power_on, promote, stop_and_compare, synced_pair, wait_connected,
    wait_synced,
};
use crate::{Lab, Packets};

/// How long writes go on without the peer.
const ALONE: Duration = Duration::from_secs(1);
/// Longer than the peers need to find out that a link is dead: ping-int and ping-timeout.
const DEAD: Duration = Duration::from_secs(6);

/// A resync after a failure copies what may differ and no more.
fn check_resync(lab: &mut Lab, primary: Side, since: Duration) -> Result<()> {
    let packets = finish(lab, primary)?;
    let copied = packets.payload_since(since, "P_RS_DATA_REPLY");
    let marked = bits_set(&packets, since) * 4096;
    lab.step(&format!("{copied} of {marked} marked bytes copied"));
    // The load writes to 8 of the 16 MiB; who crashed has whole extents of 4 MiB marked.
    ensure!(copied > 0 && copied <= marked.min(8 << 20), "{copied} of {marked} marked bytes were copied");
    Ok(())
}

/// Bits in the bitmaps that both sent, blocks of 4 KiB: no more than these may be copied.
fn bits_set(packets: &Packets, since: Duration) -> usize {
    let bitmaps = packets.0.iter().filter(|said| said.time >= since && said.name.ends_with("BITMAP"));
    bitmaps.filter_map(|said| said.fields.rsplit("bits_set=").next()?.parse::<usize>().ok()).sum()
}

/// `kill -9` of zead while the kernel writes; then it comes back.
pub fn interop_zea_secondary_is_killed_under_load(lab: &mut Lab) -> Result<()> {
    synced_pair(lab, 'C', Kernel)?;
    let load = Load::begin(lab, Kernel)?;
    lab.kill_zead()?;
    thread::sleep(ALONE);
    let since = now()?;
    lab.start_zead()?;
    wait_connected(lab)?;
    load.stop(lab)?;
    wait_synced(lab)?;
    check_resync(lab, Kernel, since)
}

/// `kill -9` of zead while it writes; it comes back and is Primary again.
pub fn interop_zea_primary_is_killed_under_load(lab: &mut Lab) -> Result<()> {
    synced_pair(lab, 'C', Zea)?;
    let _load = Load::begin(lab, Zea)?;
    lab.kill_zead()?;
    let since = now()?;
    lab.start_zead()?;
    wait_connected(lab)?;
    wait_synced(lab)?;
    promote(lab, Zea)?;
    fill(lab, Zea, 0, 64, 7)?;
    check_resync(lab, Zea, since)
}

/// The kernel's machine loses its power while Zea writes; then it boots again.
pub fn interop_kernel_secondary_loses_its_power_under_load(lab: &mut Lab) -> Result<()> {
    synced_pair(lab, 'C', Zea)?;
    let load = Load::begin(lab, Zea)?;
    lab.kill_guest(1)?;
    thread::sleep(DEAD);
    let since = now()?;
    power_on(lab)?;
    load.stop(lab)?;
    wait_synced(lab)?;
    check_resync(lab, Zea, since)
}

/// The kernel's machine loses its power while it writes; Zea takes over and writes; then the kernel comes back.
pub fn interop_kernel_primary_loses_its_power_under_load(lab: &mut Lab) -> Result<()> {
    synced_pair(lab, 'C', Kernel)?;
    let _load = Load::begin(lab, Kernel)?;
    lab.kill_guest(1)?;
    lab.zead().wait(SOON, |status| status["connections"][0]["connection-state"] != "Connected")?;
    promote(lab, Zea)?;
    fill(lab, Zea, 128, 64, 9)?;
    let since = now()?;
    power_on(lab)?;
    wait_synced(lab)?;
    check_resync(lab, Zea, since)
}

/// The cable is pulled while one writes, and plugged in again.
fn link_cut(lab: &mut Lab, primary: Side) -> Result<()> {
    synced_pair(lab, 'C', primary)?;
    let load = Load::begin(lab, primary)?;
    lab.set_cable(1, false)?;
    lab.zead().wait(SOON, |status| status["connections"][0]["connection-state"] != "Connected")?;
    lab.guest(1).wait(SOON, "grep -q ' 0: cs:WFConnection' /proc/drbd")?;
    lab.step("cut");
    thread::sleep(ALONE);
    let since = now()?;
    lab.set_cable(1, true)?;
    wait_connected(lab)?;
    load.stop(lab)?;
    wait_synced(lab)?;
    check_resync(lab, primary, since)
}

/// The link of a Zea Primary is cut.
pub fn interop_link_of_a_zea_primary_is_cut_under_load(lab: &mut Lab) -> Result<()> {
    link_cut(lab, Zea)
}

/// The link of a kernel Primary is cut.
pub fn interop_link_of_a_kernel_primary_is_cut_under_load(lab: &mut Lab) -> Result<()> {
    link_cut(lab, Kernel)
}

/// Both write while the link is cut. Each refuses the other; then one gives its changes up.
fn split_brain(lab: &mut Lab, survivor: Side) -> Result<()> {
    synced_pair(lab, 'C', Zea)?;
    lab.set_cable(1, false)?;
    lab.zead().wait(SOON, |status| status["connections"][0]["connection-state"] != "Connected")?;
    lab.guest(1).wait(SOON, "grep -q ' 0: cs:WFConnection' /proc/drbd")?;
    promote(lab, Kernel)?;
    fill(lab, Zea, 1024, 64, 1)?;
    fill(lab, Kernel, 2048, 64, 2)?;
    demote(lab, Zea)?;
    demote(lab, Kernel)?;
    lab.set_cable(1, true)?;
    refused_and_ended_by_hand(lab, survivor)?;
    let (image, block) = match survivor {
        Zea => (lab.disk(1, 0), (1024, 1)),
        Kernel => (lab.zead().disk().to_owned(), (2048, 2)),
    };
    stop_and_compare(lab)?;
    let survived = std::fs::read(image)?[block.0 * 1024..][..64 << 10].iter().all(|&byte| byte == block.1);
    ensure!(survived, "the wrong changes survived");
    Ok(())
}

/// A split brain of two Secondaries that are about to meet.
pub(super) fn refused_and_ended_by_hand(lab: &mut Lab, survivor: Side) -> Result<()> {
    lab.zead().wait(SOON, |status| status["connections"][0]["connection-state"] == "StandAlone")?;
    lab.guest(1).wait(SOON, "grep -q ' 0: cs:StandAlone' /proc/drbd")?;
    let status = lab.zead().status()?;
    let reason = status["connections"][0]["last-error"].as_str().unwrap_or_default();
    ensure!(reason.contains("split brain"), "{status:#}");
    let said = lab.guest(1).run("dmesg | grep drbd")?;
    ensure!(said.contains("Split-Brain detected"), "{said}");
    lab.step("refused");
    match survivor {
        Zea => {
            lab.guest(1).run("drbdadm connect --discard-my-data r0")?;
            lab.zead().zea("connect r0")?;
        }
        Kernel => {
            lab.guest(1).run("drbdadm connect r0")?;
            lab.zead().zea("connect r0 guest1 --discard-my-data")?;
        }
    }
    wait_connected(lab)?;
    wait_synced(lab)
}

/// The kernel gives its changes up.
pub fn interop_split_brain_is_refused_and_ended_by_hand_for_zea(lab: &mut Lab) -> Result<()> {
    split_brain(lab, Zea)
}

/// Zea gives its changes up.
pub fn interop_split_brain_is_refused_and_ended_by_hand_for_the_kernel(lab: &mut Lab) -> Result<()> {
    split_brain(lab, Kernel)
}
