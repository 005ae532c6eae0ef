#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| zea_meta::fuzz::fuzz_foreign(data));
