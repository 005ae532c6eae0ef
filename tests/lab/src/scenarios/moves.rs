//! A disk that moves: what one of the two has left, the other attaches. The kernel has the meta data of 8.4 (v08), and Zea either
//! the same, or v09, as `drbdmeta` makes it from v08 for whoever comes from DRBD 8.4 to 9, and v08 from it for who goes back.

use std::path::Path;

use anyhow::{Result, ensure};

use super::pair::Side::{self, Kernel, Zea};
use super::pair::{
    Load, demote, fill, finish, now, power_on, promote, stop_and_compare, synced_pair, wait_connected, wait_synced,
};
use crate::{Lab, tool};

/// Seconds for `drbdmeta`.
const TOOL_S: u32 = 180;

/// The meta data that Zea has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V08,
    V09,
}
use Format::{V08, V09};

/// Zea, which is down, gets a copy of the disk of the guest, which is not booted.
fn copy_to_zea(lab: &mut Lab, format: Format) -> Result<()> {
    let (kernel, zea) = (lab.disk(1, 0), lab.zead().disk().to_owned());
    std::fs::copy(kernel, &zea)?;
    convert(lab, &zea, format)
}

/// Makes v09 of the v08 of a disk that is not in use, if that is what Zea has.
fn convert(lab: &mut Lab, disk: &Path, format: Format) -> Result<()> {
    if format == V09 {
        drbdmeta(lab, disk, &["v09"], &["create-md", "1"])?;
    }
    Ok(())
}

fn drbdmeta(lab: &mut Lab, disk: &Path, format: &[&str], command: &[&str]) -> Result<()> {
    let mut drbdmeta = tool::limited(TOOL_S, "drbdmeta");
    drbdmeta.args(["--force", "-"]).args(format).arg(disk).arg("internal").args(command);
    tool::succeed(&mut drbdmeta)?;
    lab.step(command[0]);
    Ok(())
}

/// The disks of both change places. Neither is in use.
fn swap(lab: &mut Lab, zea: &Path, format: Format) -> Result<()> {
    let (kernel, aside) = (lab.disk(1, 0), lab.folder().join("aside"));
    std::fs::rename(zea, &aside)?;
    std::fs::rename(&kernel, zea)?;
    std::fs::rename(&aside, &kernel)?;
    lab.step("disks change places");
    if format == V09 {
        // Before it converts, it wants the activity log applied.
        drbdmeta(lab, &kernel, &["v09"], &["apply-al"])?;
        drbdmeta(lab, &kernel, &["v08"], &["create-md"])?;
        drbdmeta(lab, zea, &["v08"], &["apply-al"])?;
    }
    convert(lab, zea, format)
}

/// Both stop in order, and have the same data.
fn stop(lab: &mut Lab, primary: Side) -> Result<()> {
    demote(lab, primary)?;
    wait_synced(lab)?;
    lab.guest(1).run("drbdadm down r0; sync")?;
    lab.zead().zea("down r0")?;
    lab.kill_guest(1)
}

/// Both come up again.
fn start(lab: &mut Lab) -> Result<()> {
    lab.zead().zea("up r0")?;
    power_on(lab)?;
    wait_connected(lab)?;
    wait_synced(lab)
}

/// Disks that were left in order are attached without a resync, in both directions.
fn in_order(lab: &mut Lab, format: Format) -> Result<()> {
    synced_pair(lab, 'C', Kernel)?;
    fill(lab, Kernel, 0, 256, 1)?;
    stop(lab, Kernel)?;
    copy_to_zea(lab, format)?;
    let since = now()?;
    start(lab)?;
    promote(lab, Zea)?;
    fill(lab, Zea, 512, 256, 2)?;
    stop(lab, Zea)?;
    let zea = lab.zead().disk().to_owned();
    swap(lab, &zea, format)?;
    start(lab)?;
    let packets = stop_and_compare(lab)?;
    let copied = packets.payload_since(since, "P_RS_DATA_REPLY");
    ensure!(copied == 0, "{copied} bytes were copied");
    Ok(())
}

/// Both have v08.
pub fn interop_disks_that_were_stopped_in_order_move_without_a_resync(lab: &mut Lab) -> Result<()> {
    in_order(lab, V08)
}

/// `drbdmeta` converts them on their way.
pub fn interop_disks_that_drbdmeta_converts_move_without_a_resync(lab: &mut Lab) -> Result<()> {
    in_order(lab, V09)
}

/// Both lose their power while one writes; each replays the activity log that the other has left.
fn unclean(lab: &mut Lab, primary: Side, format: Format) -> Result<()> {
    synced_pair(lab, 'C', Kernel)?;
    stop(lab, Kernel)?;
    copy_to_zea(lab, format)?;
    start(lab)?;
    promote(lab, primary)?;
    let load = Load::begin(lab, primary)?;
    let zea = lab.zead().disk().to_owned();
    lab.kill_zead()?;
    lab.kill_guest(1)?;
    drop(load);
    swap(lab, &zea, format)?;
    let since = now()?;
    lab.start_zead()?;
    power_on(lab)?;
    wait_connected(lab)?;
    wait_synced(lab)?;
    promote(lab, Zea)?;
    fill(lab, Zea, 0, 64, 3)?;
    let packets = finish(lab, Zea)?;
    let copied = packets.payload_since(since, "P_RS_DATA_REPLY");
    ensure!((4096..=8 << 20).contains(&copied), "{copied} bytes were copied");
    Ok(())
}

/// The kernel replays what Zea was writing.
pub fn interop_a_disk_of_a_zea_primary_without_power_moves(lab: &mut Lab) -> Result<()> {
    unclean(lab, Zea, V08)
}

/// Zea replays what the kernel was writing.
pub fn interop_a_disk_of_a_kernel_primary_without_power_moves(lab: &mut Lab) -> Result<()> {
    unclean(lab, Kernel, V08)
}

/// `drbdmeta` replays what Zea was writing, and makes v08 of it for the kernel.
pub fn interop_a_converted_disk_of_a_zea_primary_without_power_moves(lab: &mut Lab) -> Result<()> {
    unclean(lab, Zea, V09)
}

/// `drbdmeta` replays what the kernel was writing, and makes v09 of it for Zea.
pub fn interop_a_converted_disk_of_a_kernel_primary_without_power_moves(lab: &mut Lab) -> Result<()> {
    unclean(lab, Kernel, V09)
}
