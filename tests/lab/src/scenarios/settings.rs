//! Secrets, discards, file systems.

use anyhow::{Context, Result, ensure};

use super::META_BYTES;
use super::pair::Side::{self, Kernel, Zea};
use super::pair::{
    SOON, fill, finish, pair, promote_first, qemu_io, stop_and_compare, synced_pair, wait_connected, wait_synced,
};
use crate::{Lab, tool};

/// Seconds for a tool that makes, copies or checks a file system.
const TOOL_S: u32 = 180;

/// A wrong secret is refused on both sides, the right one not.
fn authenticate(lab: &mut Lab, primary: Side) -> Result<()> {
    let secret = lab.folder().join("secret");
    std::fs::write(&secret, "of both")?;
    let zea = format!("--cram-hmac-alg sha256 --secret-file {}", secret.display());
    pair(lab, 'C', &zea, "cram-hmac-alg sha256; shared-secret \"of one\";")?;
    lab.zead().wait(SOON, |status| status["connections"][0]["connection-state"] == "StandAlone")?;
    let status = lab.zead().status()?;
    let reason = status["connections"][0]["last-error"].as_str().unwrap_or_default();
    ensure!(reason.contains("authentication"), "{status:#}");
    lab.guest(1).run("drbdadm disconnect --force r0; sed -i 's/of one/of both/' /etc/drbd.conf; drbdadm adjust r0")?;
    lab.zead().zea("connect r0")?;
    wait_connected(lab)?;
    promote_first(lab, primary)?;
    wait_synced(lab)?;
    fill(lab, primary, 0, 64, 1)?;
    let packets = finish(lab, primary)?;
    ensure!(packets.count("P_AUTH_RESPONSE") >= 3, "{packets}");
    Ok(())
}

/// Zea is Primary.
pub fn interop_a_zea_primary_authenticates_with_the_same_secret_only(lab: &mut Lab) -> Result<()> {
    authenticate(lab, Zea)
}

/// The kernel is Primary.
pub fn interop_a_kernel_primary_authenticates_with_the_same_secret_only(lab: &mut Lab) -> Result<()> {
    authenticate(lab, Kernel)
}

/// Zea discards and zeroes ranges that had data.
pub fn interop_discards_and_zeroes_of_zea_reach_the_kernel(lab: &mut Lab) -> Result<()> {
    synced_pair(lab, 'C', Zea)?;
    fill(lab, Zea, 0, 4096, 0x77)?;
    qemu_io(lab, "discard 1M 1M")?;
    qemu_io(lab, "write -z 3M 512k")?;
    let packets = finish(lab, Zea)?;
    ensure!(packets.count("P_TRIM") > 0 && packets.count("P_ZEROES") > 0, "{packets}");
    Ok(())
}

/// The kernel discards and zeroes ranges that had data.
pub fn interop_discards_and_zeroes_of_the_kernel_reach_zea(lab: &mut Lab) -> Result<()> {
    lab.give("fallocate");
    synced_pair(lab, 'C', Kernel)?;
    fill(lab, Kernel, 0, 4096, 0x77)?;
    lab.guest(1).run(
        "set -e; blkdiscard -o 1048576 -l 1048576 /dev/drbd0; sync
        /usr/bin/fallocate -z -o 3145728 -l 524288 /dev/drbd0; sync",
    )?;
    let packets = finish(lab, Kernel)?;
    ensure!(packets.count("P_TRIM") > 0 && packets.count("P_ZEROES") > 0, "{packets}");
    Ok(())
}

/// An ext4 made for Zea is mounted by the kernel; what the kernel wrote is whole on Zea's disk.
pub fn interop_file_systems_of_zea_are_whole_on_the_kernel(lab: &mut Lab) -> Result<()> {
    synced_pair(lab, 'C', Zea)?;
    let image = lab.folder().join("ext4");
    let mut mkfs = tool::limited(TOOL_S, "mke2fs");
    tool::succeed(mkfs.args(["-q", "-t", "ext4", "-d", env!("CARGO_MANIFEST_DIR")]).arg(&image).arg("15M"))?;
    let uri = lab.zead().nbd();
    tool::succeed(tool::limited(TOOL_S, "nbdcopy").arg("--flush").arg(&image).arg(uri))?;
    lab.step("file system copied");
    lab.zead().zea("demote r0")?;
    let files = lab.guest(1).run(
        "set -e; drbdadm primary r0; mount /dev/drbd0 /mnt
        cat /mnt/Cargo.toml; echo more >/mnt/more; umount /mnt",
    )?;
    ensure!(files.contains("zea-lab"), "{files}");
    let packets = finish(lab, Kernel)?;
    check_ext4(lab)?;
    ensure!(packets.count("P_DATA") > 0, "{packets}");
    Ok(())
}

/// An ext4 that the kernel made is whole on Zea's disk.
pub fn interop_file_systems_of_the_kernel_are_whole_on_zea(lab: &mut Lab) -> Result<()> {
    lab.give("mkfs.ext4");
    synced_pair(lab, 'C', Kernel)?;
    lab.guest(1).run(
        "set -e; mkfs.ext4 -q /dev/drbd0; mount /dev/drbd0 /mnt
        cp -r /bin/busybox /etc /mnt; umount /mnt; drbdadm secondary r0",
    )?;
    wait_synced(lab)?;
    stop_and_compare(lab)?;
    check_ext4(lab)
}

/// Checks the file system on Zea's disk.
fn check_ext4(lab: &mut Lab) -> Result<()> {
    let disk = lab.zead().disk().to_owned();
    let checked = tool::succeed(tool::limited(TOOL_S, "e2fsck").args(["-f", "-n"]).arg(disk));
    checked.context("the file system is damaged")?;
    lab.step("checked");
    Ok(())
}

/// Smaller than XFS likes, and large enough for blocks of 1 KiB.
const XFS_DISK_BYTES: u64 = 24 << 20;
const MKFS_XFS: &str = "-q -f --unsupported -b size=1024";

/// An XFS made for Zea is mounted by the kernel; what the kernel wrote is whole on Zea's disk.
pub fn interop_xfs_of_zea_is_whole_on_the_kernel(lab: &mut Lab) -> Result<()> {
    lab.set_disk_bytes(XFS_DISK_BYTES);
    synced_pair(lab, 'C', Zea)?;
    let image = lab.folder().join("xfs");
    std::fs::File::create(&image)?.set_len(XFS_DISK_BYTES - META_BYTES)?;
    tool::succeed(tool::limited(TOOL_S, "mkfs.xfs").args(MKFS_XFS.split(' ')).arg(&image))?;
    let uri = lab.zead().nbd();
    tool::succeed(tool::limited(TOOL_S, "nbdcopy").arg("--flush").arg(&image).arg(uri))?;
    lab.step("file system copied");
    lab.zead().zea("demote r0")?;
    lab.guest(1).run(
        "set -e; drbdadm primary r0; mount -t xfs /dev/drbd0 /mnt
        cp -r /bin/busybox /etc /mnt; umount /mnt",
    )?;
    let packets = finish(lab, Kernel)?;
    check_xfs(lab)?;
    ensure!(packets.count("P_DATA") > 0, "{packets}");
    Ok(())
}

/// An XFS that the kernel made is whole on Zea's disk.
pub fn interop_xfs_of_the_kernel_is_whole_on_zea(lab: &mut Lab) -> Result<()> {
    lab.give("mkfs.xfs");
    lab.set_disk_bytes(XFS_DISK_BYTES);
    synced_pair(lab, 'C', Kernel)?;
    lab.guest(1).run(&format!(
        "set -e; mkfs.xfs {MKFS_XFS} /dev/drbd0; mount -t xfs /dev/drbd0 /mnt
        cp -r /bin/busybox /etc /mnt; umount /mnt; drbdadm secondary r0"
    ))?;
    wait_synced(lab)?;
    stop_and_compare(lab)?;
    check_xfs(lab)
}

/// Checks the file system on Zea's disk, as far as the volume goes.
fn check_xfs(lab: &mut Lab) -> Result<()> {
    let disk = lab.zead().disk().to_owned();
    let checked =
        tool::succeed(tool::limited(TOOL_S, "xfs_repair").args(["-n", "-f", "-o", "force_geometry"]).arg(disk));
    checked.context("the file system is damaged")?;
    lab.step("checked");
    Ok(())
}
