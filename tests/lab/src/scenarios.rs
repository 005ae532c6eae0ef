//! The scenarios. Each is a function that is handed a lab, and a test of the same name.

mod kernel_pair;
mod zea_peer;

use anyhow::Result;

use crate::Lab;

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
            interop_kernel_84_is_refused_with_the_reason_on_both_sides,
        }
    };
}

pub use kernel_pair::{
    interop_guest_boots_and_loads_drbd, interop_two_guests_over_a_bridge, interop_two_kernel_resources_in_one_guest,
};
pub use zea_peer::interop_kernel_84_is_refused_with_the_reason_on_both_sides;

macro_rules! list {
    ($($name:ident),+ $(,)?) => {
        /// All scenarios by name.
        pub const ALL: &[(&str, Run)] = &[$( (stringify!($name), $name) ),+];
    };
}
for_each_scenario!(list);

/// Data of 16 MiB with internal meta data of version 08, in bytes.
const DEVICE_BYTES: u64 = 32_688 * 512;

/// Starts resource r0 in a guest: one volume on its first disk, meta data inside, and a peer of this name and address.
/// `net` has more options of the connection.
fn kernel_up(lab: &mut Lab, guest: usize, (peer, address): (&str, &str), net: &str) -> Result<()> {
    lab.guest(guest).run(&format!(
        "set -e; modprobe drbd; cat >/etc/drbd.conf <<'END'
global {{ usage-count no; }}
resource r0 {{
    net {{ protocol C; connect-int 1; ping-int 2; {net} }}
    disk {{ c-plan-ahead 0; resync-rate 200M; }}
    device minor 0; disk /dev/ubda; meta-disk internal;
    on guest{guest} {{ address 10.99.0.{guest}:7789; }}
    on {peer} {{ address {address}:7789; }}
}}
END
        drbdadm create-md --force r0; drbdadm up r0"
    ))?;
    Ok(())
}
