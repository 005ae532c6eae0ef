//! What an administrator starts on nodes that are connected: invalidate, verify, resync by checksums.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::DEVICE_BYTES;
use super::pair::Side::{self, Kernel, Zea};
use super::pair::{
    Load, SOON, finish, now, out_of_sync, pair, plant, promote_first, reconnect, scribble, synced_pair, wait_connected,
    wait_synced,
};
use crate::Lab;

/// Each of `commands` makes one of the two copy everything from the other, while the Primary writes.
fn invalidate(lab: &mut Lab, primary: Side, commands: [(Side, &str, Side); 3]) -> Result<()> {
    synced_pair(lab, 'C', primary)?;
    for (asks, command, loser) in commands {
        plant(lab, loser, 12 << 10)?;
        let load = Load::begin(lab, primary)?;
        match asks {
            Zea => lab.zead().zea(&format!("{command} r0 0")).map(drop)?,
            Kernel => lab.guest(1).run(&format!("drbdadm {command} r0")).map(drop)?,
        }
        load.stop(lab)?;
        wait_synced(lab)?;
        lab.step(&format!("{asks:?}: {command}"));
    }
    let packets = finish(lab, primary)?;
    let copied = packets.payload_since(Duration::ZERO, "P_RS_DATA_REPLY") as u64;
    // The first copy, and one each.
    ensure!(copied >= 4 * (DEVICE_BYTES - (1 << 20)), "{copied} bytes were copied");
    ensure!(packets.count("P_CONNECTION_FEATURES") == 2, "they connected again: {packets}");
    Ok(())
}

/// Next to a Zea Primary.
pub fn interop_invalidate_beside_a_zea_primary(lab: &mut Lab) -> Result<()> {
    let commands = [(Kernel, "invalidate", Kernel), (Zea, "invalidate", Zea), (Kernel, "invalidate-remote", Zea)];
    invalidate(lab, Zea, commands)
}

/// Next to a Primary of the kernel.
pub fn interop_invalidate_beside_a_kernel_primary(lab: &mut Lab) -> Result<()> {
    let commands = [(Kernel, "invalidate-remote", Zea), (Zea, "invalidate", Zea), (Kernel, "invalidate", Kernel)];
    invalidate(lab, Kernel, commands)
}

/// Each verifies the other while the Primary writes; both find the one block that was changed behind their backs, and it is
/// repaired when they connect again.
fn verify(lab: &mut Lab, primary: Side) -> Result<()> {
    pair(lab, 'C', "--verify-alg crc32c", "verify-alg crc32c;")?;
    wait_connected(lab)?;
    promote_first(lab, primary)?;
    wait_synced(lab)?;
    plant(lab, if primary == Zea { Kernel } else { Zea }, 12 << 10)?;
    let load = Load::begin(lab, primary)?;
    let found = lab.zead().zea("verify r0 --wait");
    let found = found.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(found.contains("4.00 KiB out of sync"), "{found}");
    ensure!(out_of_sync(lab)? == (4, 4), "{:?} KiB", out_of_sync(lab)?);
    lab.step("verified by zea");
    lab.guest(1).run("drbdadm verify r0")?;
    lab.guest(1).wait(SOON, "grep -q ' 0: cs:Connected' /proc/drbd")?;
    load.stop(lab)?;
    ensure!(out_of_sync(lab)? == (4, 4), "{:?} KiB", out_of_sync(lab)?);
    lab.step("verified by the kernel");
    let since = now()?;
    reconnect(lab)?;
    wait_synced(lab)?;
    let packets = finish(lab, primary)?;
    let copied = packets.payload_since(since, "P_RS_DATA_REPLY");
    ensure!(copied == 4096, "{copied} bytes were copied");
    Ok(())
}

/// Next to a Zea Primary.
pub fn interop_verify_beside_a_zea_primary(lab: &mut Lab) -> Result<()> {
    verify(lab, Zea)
}

/// Next to a Primary of the kernel.
pub fn interop_verify_beside_a_kernel_primary(lab: &mut Lab) -> Result<()> {
    verify(lab, Kernel)
}

/// Each gets everything from the other by checksums: one block differs, the rest is not copied.
fn checksums(lab: &mut Lab, primary: Side) -> Result<()> {
    pair(lab, 'C', "--csums-alg sha1", "csums-alg sha1;")?;
    wait_connected(lab)?;
    scribble(lab, primary)?;
    promote_first(lab, primary)?;
    wait_synced(lab)?;
    let since = now()?;
    for loser in [Kernel, Zea] {
        plant(lab, loser, 12 << 10)?;
        match loser {
            Zea => lab.zead().zea("invalidate r0 0").map(drop)?,
            Kernel => lab.guest(1).run("drbdadm invalidate r0").map(drop)?,
        }
        wait_synced(lab)?;
        lab.step(&format!("{loser:?}: all compared"));
    }
    let packets = finish(lab, primary)?;
    let copied = packets.payload_since(since, "P_RS_DATA_REPLY");
    let [asked, equal] = ["P_CSUM_RS_REQUEST", "P_RS_IS_IN_SYNC"].map(|name| packets.count(name));
    ensure!((4096..=2 << 20).contains(&copied) && equal > 16, "{asked} asked, {equal} equal, {copied} bytes copied");
    Ok(())
}

/// Next to a Zea Primary.
pub fn interop_checksums_beside_a_zea_primary(lab: &mut Lab) -> Result<()> {
    checksums(lab, Zea)
}

/// Next to a Primary of the kernel.
pub fn interop_checksums_beside_a_kernel_primary(lab: &mut Lab) -> Result<()> {
    checksums(lab, Kernel)
}
