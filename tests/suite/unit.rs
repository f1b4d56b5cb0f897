//! The systemd unit of the standalone, compared with the program and rated by systemd's own tool.

use std::collections::BTreeSet;
use std::process::Command;

use harness::processes::run;

const UNIT: &str = include_str!("../../systemd/catchall.service");
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/catchall.service");

/// The value of a setting that stands once.
fn setting(name: &str) -> &'static str {
    let mut values = UNIT.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(values.next(), None, "{name} stands twice");
    value
}

#[test]
fn its_exposure_is_below_two() {
    let rated = Command::new("systemd-analyze")
        .args(["security", "--offline=yes", "--no-pager", "--threshold=19", PATH])
        .output()
        .expect("systemd-analyze, of the package systemd, which ./dev test installs");
    let told = String::from_utf8_lossy(&rated.stdout);
    assert!(rated.status.success(), "{told}{}", String::from_utf8_lossy(&rated.stderr));
    assert!(told.contains("Overall exposure level"), "{told}");
}

#[test]
fn it_does_not_restart_where_only_a_person_can_help() {
    let (_, help, _) = run("standalone", &["--help"], &[]);
    let listed = help.split("Exit status:\n").nth(1).unwrap().lines();
    let listed: BTreeSet<u8> =
        listed.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    assert!(listed.len() > 10, "{listed:?}");
    let prevented = setting("RestartPreventExitStatus").split(' ').map(|status| status.parse().unwrap());
    // A failure of another kind, and a disk that is full, may be over by the next try.
    let restarted = BTreeSet::from([0, 1, 16]);
    assert_eq!(prevented.collect::<BTreeSet<u8>>(), &listed - &restarted);
}

#[test]
fn it_may_write_where_its_data_is() {
    let directory = format!("/var/lib/{}/", setting("StateDirectory"));
    let data = setting("Environment=CATCHALL_DATA");
    assert!(data.starts_with(&directory), "{data}");
    let seconds: u64 = setting("TimeoutStopSec").parse().unwrap();
    assert!(seconds > catchall::shutdown::GRACE.as_secs());
}
