//! Every scenario with block devices as a test, on two kernels.

use std::io::Write;

use zea_lab::Linux;
use zea_lab::scenarios::{self, RunVm};

fn run(name: &str, linux: Linux, scenario: RunVm) {
    if let Some(why) = zea_lab::missing_for_vm(linux) {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
        // Not by a macro: the test harness would hide it.
        let skipped = format!("SKIPPED {name}: {why}\n");
        std::io::stderr().write_all(skipped.as_bytes()).unwrap();
        return;
    }
    let mut vm = scenarios::boot(linux).unwrap_or_else(|error| panic!("{error:#}"));
    let result = scenario(&mut vm);
    println!("{}", vm.times());
    if let Err(error) = result {
        panic!("{error:#}\n{}", vm.remains());
    }
}

macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        mod linux_6_12 {
            $( #[test]
            fn $name() {
                super::run(stringify!($name), super::Linux::V6_12, super::scenarios::$name);
            } )+
        }
        mod linux_7_3 {
            $( #[test]
            fn $name() {
                super::run(stringify!($name), super::Linux::V7_3, super::scenarios::$name);
            } )+
        }
    };
}
zea_lab::for_each_ublk_scenario!(tests);
