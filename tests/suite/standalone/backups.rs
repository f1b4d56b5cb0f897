//! Backups: what they hold, and what they do not replace.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use harness::processes::{Service, command};
use harness::system::{data_file, directory};
use hyper::StatusCode;

use super::clients::Clients;
use super::trouble::used;
use super::{back_up, checked, post, refusal, start};

#[tokio::test]
async fn a_file_that_was_in_use_is_not_replaced_before_its_wal_is_gone() {
    let (data, other) = (used().await, data_file());
    let mut service = start(&other, &[]).await;
    assert_eq!(service.put("/events/b.com/delivered").await, StatusCode::ACCEPTED);
    service.signal("KILL");
    service.ended().await;
    let wal = other.with_extension("db-wal");
    let (file, log) = (fs::read(&other).unwrap(), fs::read(&wal).unwrap());
    assert!(!log.is_empty());
    let (status, said) = refusal(back_up(&data, &other));
    assert_eq!((status, said.contains("choose another name")), (11, true), "{said}");
    assert!(fs::read(&other).unwrap() == file && fs::read(&wal).unwrap() == log, "they were changed");
    // It would be taken for that of a new file, too.
    fs::remove_file(&other).unwrap();
    let (status, said) = refusal(back_up(&data, &other));
    assert_eq!((status, said.contains("choose another name")), (11, true), "{said}");
    assert_eq!((fs::read(&wal).unwrap() == log, other.exists()), (true, false));
    // An empty one has nothing that could be mixed with a new file.
    fs::write(&wal, "").unwrap();
    let copied = back_up(&data, &other);
    assert!(copied.status.success(), "{copied:?}");
    let service = start(&other, &[]).await;
    service.answers("a.com", "unknown", 1, 0).await;
    service.answers("b.com", "unknown", 0, 0).await;
}

#[tokio::test]
async fn a_file_that_another_process_serves_is_not_replaced() {
    let (data, other) = (used().await, data_file());
    let service = start(&other, &[]).await;
    assert_eq!(service.put("/events/b.com/delivered").await, StatusCode::ACCEPTED);
    let (status, said) = refusal(back_up(&data, &other));
    assert_eq!((status, said.contains("in use by another process")), (15, true), "{said}");
    assert!(said.contains(&format!("(pid {})", service.pid())), "{said}");
    assert_eq!(service.put("/events/b.com/delivered").await, StatusCode::ACCEPTED);
    service.answers("b.com", "unknown", 2, 0).await;
}

#[tokio::test]
async fn a_name_that_sqlite_cannot_take_is_refused() {
    let (data, folder) = (used().await, directory());
    let (status, said) = refusal(back_up(&data, &folder.join(OsStr::from_bytes(b"copy\xff.db"))));
    assert_eq!((status, said.contains("is not UTF-8")), (11, true), "{said}");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "something was left there");
}

/// Kills a backup that has written at least so many bytes, and has not given its copy a name yet. Returns
/// the copy of before.
async fn kill_in_the_middle(service: &Service, data: &Path, copy: &Path, bytes: u64) -> Vec<u8> {
    let new = copy.with_extension("db.new");
    for _ in 0..100 {
        // So that the next copy is not like the one before.
        assert_eq!(service.put("/events/late.com/delivered").await, StatusCode::ACCEPTED);
        let before = fs::read(copy).unwrap();
        let mut backup = command("standalone");
        backup.args(["backup", "--data"]).arg(data).arg(copy).stdout(Stdio::null()).stderr(Stdio::null());
        let mut backup = backup.spawn().unwrap();
        let has_begun = || fs::metadata(&new).is_ok_and(|new| new.len() >= bytes);
        while !has_begun() && backup.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let _ = backup.kill();
        backup.wait().unwrap();
        // Otherwise it was complete before the kill came.
        if new.exists() {
            return before;
        }
    }
    panic!("no backup could be killed in its middle");
}

#[tokio::test]
async fn a_backup_that_is_killed_leaves_the_copy_of_before_and_the_next_one_is_complete() {
    const DOMAINS: usize = 40_000;
    let data = data_file();
    let (copy, new) = (data.with_file_name("copy.db"), data.with_file_name("copy.db.new"));
    let service = start(&data, &[]).await;
    post(&service, 0..DOMAINS / 2).await;
    let copied = back_up(&data, &copy);
    assert!(copied.status.success(), "{copied:?}");
    post(&service, DOMAINS / 2..DOMAINS).await;
    let before = kill_in_the_middle(&service, &data, &copy, 0).await;
    assert!(fs::read(&copy).unwrap() == before, "a killed backup has changed the copy");
    fs::remove_file(&new).unwrap();
    let before = kill_in_the_middle(&service, &data, &copy, 1).await;
    assert!(fs::read(&copy).unwrap() == before, "a killed backup has changed the copy");
    // The next one finds what that has left.
    let copied = back_up(&data, &copy);
    assert!(copied.status.success(), "{copied:?}");
    let [domains, _, _, claims] = checked(&copy);
    assert_eq!((domains, claims), (DOMAINS as u64 + 1, DOMAINS as u64));
    assert!(!new.exists(), "what a killed one has left is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_holds_what_was_accepted_before_it_began_and_nothing_that_came_after_it() {
    let data = data_file();
    let copy = data.with_file_name("copy.db");
    let service = start(&data, &[]).await;
    let clients = Clients::start(&service.address());
    for _ in 0..5 {
        clients.go_on().await;
        let accepted = clients.accepted();
        let copied = back_up(&data, &copy);
        let sent = clients.sent();
        assert!(copied.status.success(), "{copied:?}");
        let [_, delivered, _, claims] = checked(&copy);
        assert!((accepted..=sent).contains(&delivered), "{delivered}, not {accepted} to {sent}");
        // Each event has a key.
        assert_eq!(claims, delivered);
    }
    let (accepted, _) = clients.end().await;
    assert_eq!(checked(&data)[1], accepted);
}
