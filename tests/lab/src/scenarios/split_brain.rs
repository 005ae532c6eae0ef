//! Split brains between Zea and the kernel that a policy ends.

use anyhow::{Result, ensure};

use super::pair::Side::{self, Kernel, Zea};
use super::pair::{
    SOON, demote, fill, finish, pair, promote, promote_first, stop_and_compare, wait_connected, wait_synced,
};
use crate::Lab;

/// A split brain of a pair with these policies.
struct Split {
    /// after-sb-0pri and after-sb-1pri of Zea.
    zea: [&'static str; 2],
    /// The kernel's, where they differ.
    kernel: [&'static str; 2],
    /// Primary when the two part.
    older: Side,
    /// KiB that Zea and the kernel write without each other.
    written_kib: [u32; 2],
    /// Primary still when they meet.
    primary: Option<Side>,
    /// Whose changes are to be lost.
    victim: Side,
}

impl Split {
    const fn by(policy: &'static str, older: Side, written_kib: [u32; 2], victim: Side) -> Split {
        let policies = [policy, "disconnect"];
        Split { zea: policies, kernel: policies, older, written_kib, primary: None, victim }
    }

    fn run(&self, lab: &mut Lab) -> Result<()> {
        let [zea, kernel] = [self.zea, self.kernel];
        let zea = format!("--after-sb-0pri {} --after-sb-1pri {}", zea[0], zea[1]);
        pair(lab, 'C', &zea, &format!("after-sb-0pri {}; after-sb-1pri {};", kernel[0], kernel[1]))?;
        wait_connected(lab)?;
        promote_first(lab, self.older)?;
        wait_synced(lab)?;
        self.part(lab, self.primary.as_slice())?;
        lab.set_cable(1, true)?;
        wait_connected(lab)?;
        wait_synced(lab)?;
        let status = lab.zead().status()?;
        let told = status["connections"][0]["last-split-brain"].as_str().unwrap_or_default();
        let victim = if self.victim == Zea { "what node 0 wrote" } else { "what node 1 wrote" };
        ensure!(told.contains(victim), "{status:#}");
        let said = lab.guest(1).run("dmesg | grep drbd")?;
        ensure!(said.contains("Split-Brain detected") && said.contains("automatically solved"), "{said}");
        if let Some(primary) = self.primary {
            fill(lab, primary, 4096, 64, 3)?;
            demote(lab, primary)?;
            wait_synced(lab)?;
        }
        stop_and_compare(lab)?;
        let image = std::fs::read(lab.zead().disk())?;
        let block = |at_kib: usize| image[at_kib * 1024];
        let survived = (block(1024) == 1, block(2048) == 2);
        let [zea_wrote, kernel_wrote] = self.written_kib.map(|kib| kib > 0);
        let expected = (zea_wrote && self.victim == Kernel, kernel_wrote && self.victim == Zea);
        ensure!(survived == expected, "{survived:?} survived, not {expected:?}");
        Ok(())
    }

    /// Both write without the other; some stay Primary.
    fn part(&self, lab: &mut Lab, primaries: &[Side]) -> Result<()> {
        lab.set_cable(1, false)?;
        lab.zead().wait(SOON, |status| status["connections"][0]["connection-state"] != "Connected")?;
        lab.guest(1).wait(SOON, "grep -q ' 0: cs:WFConnection' /proc/drbd")?;
        promote(lab, if self.older == Zea { Kernel } else { Zea })?;
        for (side, at_kib, written_kib, byte) in
            [(Zea, 1024, self.written_kib[0], 1), (Kernel, 2048, self.written_kib[1], 2)]
        {
            if written_kib > 0 {
                fill(lab, side, at_kib, written_kib, byte)?;
            }
            if !primaries.contains(&side) {
                demote(lab, side)?;
            }
        }
        lab.step("parted");
        Ok(())
    }
}

/// The kernel became Primary and changed nothing.
pub fn interop_split_brain_discards_zero_changes_of_the_kernel(lab: &mut Lab) -> Result<()> {
    Split::by("discard-zero-changes", Zea, [64, 0], Kernel).run(lab)
}

/// Zea changed less.
pub fn interop_split_brain_discards_least_changes_of_zea(lab: &mut Lab) -> Result<()> {
    Split::by("discard-least-changes", Zea, [64, 256], Zea).run(lab)
}

/// The kernel changed less.
pub fn interop_split_brain_discards_least_changes_of_the_kernel(lab: &mut Lab) -> Result<()> {
    Split::by("discard-least-changes", Kernel, [256, 64], Kernel).run(lab)
}

/// Zea was Primary first.
pub fn interop_split_brain_discards_a_younger_kernel_primary(lab: &mut Lab) -> Result<()> {
    Split::by("discard-younger-primary", Zea, [64, 256], Kernel).run(lab)
}

/// The kernel was Primary first.
pub fn interop_split_brain_discards_a_younger_zea_primary(lab: &mut Lab) -> Result<()> {
    Split::by("discard-younger-primary", Kernel, [256, 64], Zea).run(lab)
}

/// Zea was Primary first.
pub fn interop_split_brain_discards_an_older_zea_primary(lab: &mut Lab) -> Result<()> {
    Split::by("discard-older-primary", Zea, [256, 64], Zea).run(lab)
}

/// Each has the policy as it sees it.
pub fn interop_split_brain_discards_what_is_local_to_zea(lab: &mut Lab) -> Result<()> {
    let by = Split::by("discard-local", Zea, [256, 64], Zea);
    Split { kernel: ["discard-remote", "disconnect"], ..by }.run(lab)
}

/// Zea is Primary still.
pub fn interop_split_brain_discards_a_secondary_kernel(lab: &mut Lab) -> Result<()> {
    let policies = ["disconnect", "discard-secondary"];
    let by = Split::by("disconnect", Zea, [64, 256], Kernel);
    Split { zea: policies, kernel: policies, primary: Some(Zea), ..by }.run(lab)
}

/// The kernel is Primary still.
pub fn interop_split_brain_discards_a_secondary_zea(lab: &mut Lab) -> Result<()> {
    let policies = ["disconnect", "discard-secondary"];
    let by = Split::by("disconnect", Zea, [256, 64], Zea);
    Split { zea: policies, kernel: policies, primary: Some(Kernel), ..by }.run(lab)
}

/// Both policies want the kernel's changes to be lost.
pub fn interop_split_brain_ends_by_consensus(lab: &mut Lab) -> Result<()> {
    let policies = ["discard-least-changes", "consensus"];
    let by = Split::by("disconnect", Kernel, [256, 64], Kernel);
    Split { zea: policies, kernel: policies, primary: Some(Zea), ..by }.run(lab)
}

/// They meet, and both refuse: nothing is changed.
fn refused(lab: &mut Lab, policies: [&'static str; 2], primaries: &[Side]) -> Result<()> {
    let by = Split::by("disconnect", Zea, [64, 64], Zea);
    let [zero, one] = policies;
    let zea = format!("--after-sb-0pri {zero} --after-sb-1pri {one}");
    pair(lab, 'C', &zea, &format!("after-sb-0pri {zero}; after-sb-1pri {one};"))?;
    wait_connected(lab)?;
    promote_first(lab, Zea)?;
    wait_synced(lab)?;
    by.part(lab, primaries)?;
    lab.set_cable(1, true)?;
    lab.zead().wait(SOON, |status| status["connections"][0]["connection-state"] == "StandAlone")?;
    lab.guest(1).wait(SOON, "grep -q ' 0: cs:StandAlone' /proc/drbd")?;
    let image = std::fs::read(lab.zead().disk())?;
    ensure!((image[1024 << 10], image[2048 << 10]) == (1, 0), "something was changed");
    let kernel = lab
        .guest(1)
        .run("for at in 1024 2048; do dd if=/dev/ubda bs=1k skip=$at count=1 2>/dev/null | od -An -N1 -tu1; done")?;
    ensure!(kernel.split_whitespace().eq(["0", "2"]), "something was changed there: {kernel}");
    Ok(())
}

/// Both wrote, and the policy is for one that did not.
pub fn interop_split_brain_that_no_policy_ends_is_refused(lab: &mut Lab) -> Result<()> {
    refused(lab, ["discard-zero-changes", "disconnect"], &[])
}

/// Both are Primary still: the only policy for these that Zea has is to disconnect.
pub fn interop_split_brain_of_two_primaries_is_refused(lab: &mut Lab) -> Result<()> {
    refused(lab, ["discard-least-changes", "discard-secondary"], &[Zea, Kernel])
}

/// A policy by which a Primary would lose its changes is refused when they connect, and Zea says why.
pub fn interop_a_policy_for_two_primaries_is_refused(lab: &mut Lab) -> Result<()> {
    pair(lab, 'C', "", "after-sb-2pri violently-as0p;")?;
    lab.zead().wait(SOON, |status| status["connections"][0]["connection-state"] == "StandAlone")?;
    let status = lab.zead().status()?;
    let reason = status["connections"][0]["last-error"].as_str().unwrap_or_default();
    ensure!(reason.contains("after-sb-2pri differs"), "{status:#}");
    // The kernel may have parted by itself: the connection is unknown to it then.
    lab.guest(1).run(
        "set -e; drbdadm disconnect --force r0 || true; sed -i 's/after-sb-2pri violently-as0p;//' /etc/drbd.conf
        drbdadm adjust r0",
    )?;
    lab.zead().zea("connect r0")?;
    wait_connected(lab)?;
    promote_first(lab, Kernel)?;
    wait_synced(lab)?;
    fill(lab, Kernel, 0, 64, 1)?;
    finish(lab, Kernel).map(drop)
}
