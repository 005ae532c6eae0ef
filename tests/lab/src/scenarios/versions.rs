//! Versions 86 to 99 of the protocol: the kernel speaks them to a Zea that offers nothing newer.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::failures::refused_and_ended_by_hand;
use super::pair::Side::{self, Kernel, Zea};
use super::pair::{
    Load, SOON, demote, fill, now, promote, promote_first, resource, scribble, stop, wait_connected, wait_synced,
};
use crate::{Lab, Packets};

/// The last, and those that brought P_OUT_OF_SYNC, longer packets, and bitmaps as run lengths; and the first. Whose data survives a split
/// brain, which is the same from either side.
const VERSIONS: [(u32, Side); 5] = [(99, Zea), (96, Kernel), (95, Zea), (90, Kernel), (86, Zea)];
/// How long writes go on without the peer.
const ALONE: Duration = Duration::from_millis(300);

/// A resync after the link was cut.
struct Resync {
    version: u32,
    from: Duration,
    to: Duration,
}

impl Resync {
    /// It has copied what was marked and no more.
    fn check(&self, packets: &Packets) -> Result<()> {
        let said = || packets.0.iter().filter(|said| (self.from..self.to).contains(&said.time));
        let bits = said().filter(|said| said.name.ends_with("BITMAP"));
        let bits = bits.filter_map(|said| said.fields.rsplit("bits_set=").next()?.parse::<usize>().ok()).sum::<usize>();
        let copied = said().filter(|said| said.name == "P_RS_DATA_REPLY").map(|said| said.payload).sum::<usize>();
        let Resync { version, .. } = self;
        ensure!(copied > 0 && copied <= bits * 4096, "version {version}: {copied} bytes for {bits} blocks were copied");
        Ok(())
    }
}

fn other(side: Side) -> Side {
    if side == Zea { Kernel } else { Zea }
}

/// All that two nodes do, from new disks on.
fn version(lab: &mut Lab, (version, survivor): (u32, Side), primary: Side) -> Result<Resync> {
    resource(lab, 'C', &format!("--protocol-version-max {version} --force"), "")?;
    wait_connected(lab)?;
    let agreed = lab.zead().status()?["connections"][0]["protocol-version"].clone();
    ensure!(agreed == version, "version {agreed} was agreed on");
    scribble(lab, primary)?;
    promote_first(lab, primary)?;
    fill(lab, primary, 1024, 1024, 0x5a)?;
    wait_synced(lab)?;
    let resync = cut(lab, version, primary)?;
    demote(lab, primary)?;
    promote(lab, other(primary))?;
    fill(lab, other(primary), 3072, 1024, 0x66)?;
    demote(lab, other(primary))?;
    wait_synced(lab)?;
    if survivor == primary {
        split_brain(lab, survivor)?;
    }
    stop(lab)?;
    lab.zead().zea("resource delete r0 --wipe-metadata")?;
    lab.step(&format!("version {version}"));
    Ok(resync)
}

/// Zea gives the link up under load, and makes it again.
fn cut(lab: &mut Lab, version: u32, primary: Side) -> Result<Resync> {
    let load = Load::begin(lab, primary)?;
    lab.zead().zea("disconnect r0 guest1 --force")?;
    lab.guest(1).wait(SOON, "grep -q ' 0: cs:WFConnection' /proc/drbd")?;
    thread::sleep(ALONE);
    let from = now()?;
    lab.zead().zea("connect r0 guest1")?;
    wait_connected(lab)?;
    load.stop(lab)?;
    wait_synced(lab)?;
    Ok(Resync { version, from, to: now()? })
}

/// The kernel parts in order; both write.
fn split_brain(lab: &mut Lab, survivor: Side) -> Result<()> {
    lab.guest(1).run("drbdadm disconnect r0")?;
    lab.zead().wait(SOON, |status| status["connections"][0]["connection-state"] != "Connected")?;
    for (side, at_kib, byte) in [(Zea, 1024, 1), (Kernel, 2048, 2)] {
        promote(lab, side)?;
        fill(lab, side, at_kib, 64, byte)?;
        demote(lab, side)?;
    }
    lab.guest(1).run("drbdadm connect r0")?;
    refused_and_ended_by_hand(lab, survivor)
}

fn versions(lab: &mut Lab, primary: Side) -> Result<()> {
    lab.start_zead()?;
    lab.boot(1, 1)?;
    let mut resyncs = Vec::new();
    for each in VERSIONS {
        resyncs.push(version(lab, each, primary)?);
    }
    let packets = lab.packets()?;
    resyncs.iter().try_for_each(|resync| resync.check(&packets))
}

/// Zea has the data.
pub fn interop_old_versions_beside_a_zea_primary(lab: &mut Lab) -> Result<()> {
    versions(lab, Zea)
}

/// The kernel has the data.
pub fn interop_old_versions_beside_a_kernel_primary(lab: &mut Lab) -> Result<()> {
    versions(lab, Kernel)
}
