//! The scenarios. Each is a function that is handed a lab, and a test of the same name.

mod failures;
mod grow;
mod integrity;
mod kernel_pair;
mod moves;
mod pair;
mod replicate;
mod settings;
mod split_brain;
mod ublk;
mod upkeep;
mod versions;

use anyhow::Result;

use crate::{Lab, Linux, Vm};

/// A scenario: what is done in a lab.
pub type Run = fn(&mut Lab) -> Result<()>;

/// Calls a macro with the paths of all scenarios.
#[macro_export]
macro_rules! for_each_scenario {
    ($call:ident) => {
        $call! {
            interop_guest_boots_and_loads_drbd,
            interop_two_kernel_resources_in_one_guest,
            interop_two_guests_over_a_bridge,
            interop_zea_primary_syncs_a_kernel,
            interop_kernel_primary_syncs_zea,
            interop_zea_primary_writes_by_protocol_a,
            interop_zea_primary_writes_by_protocol_b,
            interop_zea_primary_writes_by_protocol_c,
            interop_kernel_primary_writes_by_protocol_a,
            interop_kernel_primary_writes_by_protocol_b,
            interop_kernel_primary_writes_by_protocol_c,
            interop_roles_swap_twenty_times_under_load,
            interop_zea_secondary_is_killed_under_load,
            interop_zea_primary_is_killed_under_load,
            interop_kernel_secondary_loses_its_power_under_load,
            interop_kernel_primary_loses_its_power_under_load,
            interop_link_of_a_zea_primary_is_cut_under_load,
            interop_link_of_a_kernel_primary_is_cut_under_load,
            interop_split_brain_is_refused_and_ended_by_hand_for_zea,
            interop_split_brain_is_refused_and_ended_by_hand_for_the_kernel,
            interop_a_zea_primary_authenticates_with_the_same_secret_only,
            interop_a_kernel_primary_authenticates_with_the_same_secret_only,
            interop_discards_and_zeroes_of_zea_reach_the_kernel,
            interop_discards_and_zeroes_of_the_kernel_reach_zea,
            interop_file_systems_of_zea_are_whole_on_the_kernel,
            interop_file_systems_of_the_kernel_are_whole_on_zea,
            interop_xfs_of_zea_is_whole_on_the_kernel,
            interop_xfs_of_the_kernel_is_whole_on_zea,
            interop_disks_that_were_stopped_in_order_move_without_a_resync,
            interop_disks_that_drbdmeta_converts_move_without_a_resync,
            interop_a_disk_of_a_zea_primary_without_power_moves,
            interop_a_disk_of_a_kernel_primary_without_power_moves,
            interop_a_converted_disk_of_a_zea_primary_without_power_moves,
            interop_a_converted_disk_of_a_kernel_primary_without_power_moves,
            interop_invalidate_beside_a_zea_primary,
            interop_invalidate_beside_a_kernel_primary,
            interop_verify_beside_a_zea_primary,
            interop_verify_beside_a_kernel_primary,
            interop_checksums_beside_a_zea_primary,
            interop_checksums_beside_a_kernel_primary,
            interop_split_brain_discards_zero_changes_of_the_kernel,
            interop_split_brain_discards_least_changes_of_zea,
            interop_split_brain_discards_least_changes_of_the_kernel,
            interop_split_brain_discards_a_younger_kernel_primary,
            interop_split_brain_discards_a_younger_zea_primary,
            interop_split_brain_discards_an_older_zea_primary,
            interop_split_brain_discards_what_is_local_to_zea,
            interop_split_brain_discards_a_secondary_kernel,
            interop_split_brain_discards_a_secondary_zea,
            interop_split_brain_ends_by_consensus,
            interop_split_brain_that_no_policy_ends_is_refused,
            interop_split_brain_of_two_primaries_is_refused,
            interop_a_policy_for_two_primaries_is_refused,
            interop_zea_primary_grows,
            interop_zea_primary_grows_when_the_kernel_does,
            interop_kernel_primary_grows,
            interop_kernel_primary_grows_when_zea_does,
            interop_data_integrity_of_a_zea_primary,
            interop_data_integrity_of_a_kernel_primary,
            interop_data_integrity_must_be_the_same,
            interop_old_versions_beside_a_zea_primary,
            interop_old_versions_beside_a_kernel_primary,
        }
    };
}

pub use failures::{
    interop_kernel_primary_loses_its_power_under_load, interop_kernel_secondary_loses_its_power_under_load,
    interop_link_of_a_kernel_primary_is_cut_under_load, interop_link_of_a_zea_primary_is_cut_under_load,
    interop_split_brain_is_refused_and_ended_by_hand_for_the_kernel,
    interop_split_brain_is_refused_and_ended_by_hand_for_zea, interop_zea_primary_is_killed_under_load,
    interop_zea_secondary_is_killed_under_load,
};
pub use grow::{
    interop_kernel_primary_grows, interop_kernel_primary_grows_when_zea_does, interop_zea_primary_grows,
    interop_zea_primary_grows_when_the_kernel_does,
};
pub use integrity::{
    interop_data_integrity_must_be_the_same, interop_data_integrity_of_a_kernel_primary,
    interop_data_integrity_of_a_zea_primary,
};
pub use kernel_pair::{
    interop_guest_boots_and_loads_drbd, interop_two_guests_over_a_bridge, interop_two_kernel_resources_in_one_guest,
};
pub use moves::{
    interop_a_converted_disk_of_a_kernel_primary_without_power_moves,
    interop_a_converted_disk_of_a_zea_primary_without_power_moves,
    interop_a_disk_of_a_kernel_primary_without_power_moves, interop_a_disk_of_a_zea_primary_without_power_moves,
    interop_disks_that_drbdmeta_converts_move_without_a_resync,
    interop_disks_that_were_stopped_in_order_move_without_a_resync,
};
pub use replicate::{
    interop_kernel_primary_syncs_zea, interop_kernel_primary_writes_by_protocol_a,
    interop_kernel_primary_writes_by_protocol_b, interop_kernel_primary_writes_by_protocol_c,
    interop_roles_swap_twenty_times_under_load, interop_zea_primary_syncs_a_kernel,
    interop_zea_primary_writes_by_protocol_a, interop_zea_primary_writes_by_protocol_b,
    interop_zea_primary_writes_by_protocol_c,
};
pub use settings::{
    interop_a_kernel_primary_authenticates_with_the_same_secret_only,
    interop_a_zea_primary_authenticates_with_the_same_secret_only, interop_discards_and_zeroes_of_the_kernel_reach_zea,
    interop_discards_and_zeroes_of_zea_reach_the_kernel, interop_file_systems_of_the_kernel_are_whole_on_zea,
    interop_file_systems_of_zea_are_whole_on_the_kernel, interop_xfs_of_the_kernel_is_whole_on_zea,
    interop_xfs_of_zea_is_whole_on_the_kernel,
};
pub use split_brain::{
    interop_a_policy_for_two_primaries_is_refused, interop_split_brain_discards_a_secondary_kernel,
    interop_split_brain_discards_a_secondary_zea, interop_split_brain_discards_a_younger_kernel_primary,
    interop_split_brain_discards_a_younger_zea_primary, interop_split_brain_discards_an_older_zea_primary,
    interop_split_brain_discards_least_changes_of_the_kernel, interop_split_brain_discards_least_changes_of_zea,
    interop_split_brain_discards_what_is_local_to_zea, interop_split_brain_discards_zero_changes_of_the_kernel,
    interop_split_brain_ends_by_consensus, interop_split_brain_of_two_primaries_is_refused,
    interop_split_brain_that_no_policy_ends_is_refused,
};
pub use upkeep::{
    interop_checksums_beside_a_kernel_primary, interop_checksums_beside_a_zea_primary,
    interop_invalidate_beside_a_kernel_primary, interop_invalidate_beside_a_zea_primary,
    interop_verify_beside_a_kernel_primary, interop_verify_beside_a_zea_primary,
};
pub use versions::{interop_old_versions_beside_a_kernel_primary, interop_old_versions_beside_a_zea_primary};

macro_rules! list {
    ($($name:ident),+ $(,)?) => {
        /// All scenarios by name.
        pub const ALL: &[(&str, Run)] = &[$( (stringify!($name), $name) ),+];
    };
}
for_each_scenario!(list);

/// A scenario in a machine of QEMU.
pub type RunVm = fn(&mut Vm) -> Result<()>;

/// Calls a macro with the paths of all scenarios with block devices.
#[macro_export]
macro_rules! for_each_ublk_scenario {
    ($call:ident) => {
        $call! {
            ublk_device_is_there_while_its_node_is_primary,
            ublk_fio_verifies_blocks_of_all_sizes,
            ublk_flushes_fua_discards_and_zeroes,
            ublk_file_systems_move_between_the_nodes,
            ublk_device_grows,
            ublk_a_killed_daemon_is_followed_under_load,
            ublk_a_killed_daemon_is_not_followed_where_another_node_went_on,
            ublk_a_mounted_file_system_outlives_its_daemon,
        }
    };
}

pub use ublk::{
    ublk_a_killed_daemon_is_followed_under_load, ublk_a_killed_daemon_is_not_followed_where_another_node_went_on,
    ublk_a_mounted_file_system_outlives_its_daemon, ublk_device_grows, ublk_device_is_there_while_its_node_is_primary,
    ublk_file_systems_move_between_the_nodes, ublk_fio_verifies_blocks_of_all_sizes,
    ublk_flushes_fua_discards_and_zeroes,
};

macro_rules! list_ublk {
    ($($name:ident),+ $(,)?) => {
        /// All scenarios with block devices by name.
        pub const ALL_UBLK: &[(&str, RunVm)] = &[$( (stringify!($name), $name) ),+];
    };
}
for_each_ublk_scenario!(list_ublk);

/// Boots a machine for a scenario.
///
/// # Errors
/// It cannot be had.
pub fn boot(linux: Linux) -> Result<Vm> {
    Vm::boot(linux, VM_DISK_BYTES)
}

/// Disks of such a machine.
const VM_DISK_BYTES: u64 = 128 << 20;

/// What internal meta data of version 08 take of a disk of at most 128 MiB, in bytes.
const META_BYTES: u64 = 40 << 10;
/// Data of a disk of 16 MiB, in bytes.
const DEVICE_BYTES: u64 = (16 << 20) - META_BYTES;

/// Starts resource r0 in a guest, with new meta data: one volume on its first disk, meta data inside, and a peer of this
/// name and address. `net` has the options of the connection.
fn kernel_up(lab: &mut Lab, guest: usize, peer: (&str, &str), net: &str) -> Result<()> {
    kernel_config(lab, guest, peer, net)?;
    lab.guest(guest).run("drbdadm create-md --force r0 && drbdadm up r0").map(drop)
}

/// Loads DRBD in a guest and writes its configuration.
fn kernel_config(lab: &mut Lab, guest: usize, (peer, address): (&str, &str), net: &str) -> Result<()> {
    let script = format!(
        "set -e; modprobe drbd; cat >/etc/drbd.conf <<'END'
global {{ usage-count no; }}
resource r0 {{
    net {{ connect-int 1; ping-int 2; {net} }}
    disk {{ c-plan-ahead 0; resync-rate 200M; }}
    device minor 0; disk /dev/ubda; meta-disk internal;
    on guest{guest} {{ address 10.99.0.{guest}:7789; }}
    on {peer} {{ address {address}:7789; }}
}}
END"
    );
    lab.guest(guest).run(&script).map(drop)
}
