//! Every scenario as a test.

use std::io::Write;

use zea_lab::Lab;
use zea_lab::scenarios::{self, Run};

fn run(name: &str, scenario: Run) {
    if let Some(why) = zea_lab::missing() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
        // Not by a macro: the test harness would hide it.
        let skipped = format!("SKIPPED {name}: {why}\n");
        std::io::stderr().write_all(skipped.as_bytes()).unwrap();
        return;
    }
    let mut lab = Lab::new().unwrap_or_else(|error| panic!("{error:#}"));
    let result = scenario(&mut lab);
    println!("{}", lab.times());
    if let Err(error) = result {
        panic!("{error:#}\n{}", lab.remains());
    }
}

macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        $( #[test]
        fn $name() {
            run(stringify!($name), scenarios::$name);
        } )+
    };
}
zea_lab::for_each_scenario!(tests);
