//! Runs one of the targets on whatever libFuzzer makes up. The variable `CATCHALL_FUZZ_TARGET` names it.
#![no_main]

use std::sync::LazyLock;

use catchall::fuzzing::{FuzzTarget, TARGETS};

static TARGET: LazyLock<FuzzTarget> = LazyLock::new(|| {
    let name = std::env::var("CATCHALL_FUZZ_TARGET").expect("CATCHALL_FUZZ_TARGET names a target");
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("there is no target {name}")).1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
