//! What is wrong with the data file is a sentence and an exit status of its own, and the file stays as it is.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::processes::{binary, command, run};
use harness::scratch::Scratch;
use harness::servers::eventually;
use harness::system::data_file;
use hyper::{Method, StatusCode};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use super::{back_up, refusal, start};

/// Starts the process on a file that it cannot use. Returns its exit status and what it said.
fn refused(data: &Path) -> (i32, String) {
    refused_by(command("standalone"), data)
}

/// The same for a command that becomes the process.
fn refused_by(mut serve: Command, data: &Path) -> (i32, String) {
    serve.args(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--data"]).arg(data);
    refusal(serve.output().unwrap())
}

/// A file with an event, which no process uses.
pub(super) async fn used() -> PathBuf {
    let data = data_file();
    let mut service = start(&data, &[]).await;
    assert_eq!(service.put("/events/a.com/delivered").await, StatusCode::ACCEPTED);
    service.signal("TERM");
    assert!(service.ended().await.success());
    data
}

#[test]
fn a_directory_that_does_not_exist() {
    let (status, said) = refused(&data_file().with_file_name("missing").join("catchall.db"));
    assert_eq!((status, said.contains("does not exist: create it")), (10, true), "{said}");
}

#[test]
fn a_directory_in_the_place_of_the_file() {
    let data = data_file();
    fs::create_dir(&data).unwrap();
    let (status, said) = refused(&data);
    assert_eq!((status, said.contains("it is a directory")), (11, true), "{said}");
}

#[test]
fn a_link_to_a_file_that_does_not_exist() {
    let (data, target) = (data_file(), data_file());
    symlink(&target, &data).unwrap();
    let (status, said) = refused(&data);
    assert_eq!(status, 11, "{said}");
    assert!(said.contains(&format!("a link to {}, which does not exist", target.display())), "{said}");
    let beside = |file: &Path| fs::read_dir(file.parent().unwrap()).unwrap().count();
    assert_eq!((beside(&data), beside(&target)), (1, 0), "something was created");
}

#[test]
fn a_directory_that_cannot_be_written() {
    // Nobody can write there, whatever the user.
    let (status, said) = refused(Path::new("/proc/catchall.db"));
    assert!(status == 10 || status == 11, "{status} {said}");
    let data = data_file();
    fs::set_permissions(data.parent().unwrap(), fs::Permissions::from_mode(0o555)).unwrap();
    let is_root = fs::write(data.with_file_name("probe"), "").is_ok();
    if !is_root {
        let (status, said) = refused(&data);
        assert_eq!((status, said.contains("cannot be written")), (11, true), "{said}");
    }
}

/// A user who owns nothing, as whom root can run a program.
const NOBODY: u32 = 65534;

/// The program as that user runs it. Where it cannot be reached, it is copied.
fn by_nobody(scratch: &Scratch) -> Command {
    let lent = |program: &str| {
        let mut command = Command::new("setpriv");
        let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".into()];
        let kept = std::env::vars().filter(|(name, _)| ["PATH", "CATCHALL_DEV"].contains(&&**name));
        command.args(user).arg(program).env_clear().envs(kept).stdin(Stdio::null());
        command
    };
    let program = binary("standalone");
    if lent(&program).arg("--version").output().unwrap().status.success() {
        return lent(&program);
    }
    // What is open to be written cannot be run. Whatever another test starts at this moment would inherit a
    // file that is open here, so another process writes it.
    let copied = Command::new("cp").args([&program, &scratch.at("catchall")]).status();
    assert!(copied.unwrap().success());
    lent(&scratch.at("catchall"))
}

#[tokio::test]
async fn a_file_that_may_only_be_read() {
    let scratch = Scratch::new();
    let data = scratch.path().join("catchall.db");
    fs::copy(used().await, &data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o444)).unwrap();
    let before = fs::read(&data).unwrap();
    // Root may write to every file.
    let is_root = fs::metadata(&data).unwrap().uid() == 0;
    let serve = if is_root {
        for path in [scratch.path(), &data] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        by_nobody(&scratch)
    } else {
        command("standalone")
    };
    let (status, said) = refused_by(serve, &data);
    assert_eq!((status, said.contains("cannot be written")), (11, true), "{said}");
    assert!(fs::read(&data).unwrap() == before, "it was changed");
}

#[tokio::test]
async fn a_file_of_another_program_a_newer_one_and_a_damaged_one_stay_as_they_are() {
    let whole = fs::read(used().await).unwrap();
    let changed = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    for (file, status, words) in [
        (b"not a database at all, but a letter to somebody".to_vec(), 12, "belongs to another program"),
        (vec![0; 8192], 12, "it is not an SQLite database"),
        (changed(68, &[0; 4]), 12, "without the application ID of catchall"),
        (changed(60, &[0, 0, 3, 0]), 14, "its schema is 768, this build knows 4"),
        (changed(16, &[7, 7]), 13, "is damaged"),
        (whole[..1500].to_vec(), 13, "is damaged"),
    ] {
        let data = data_file();
        fs::write(&data, &file).unwrap();
        let (ended, said) = refused(&data);
        assert_eq!((ended, said.contains(words)), (status, true), "{said}");
        assert!(fs::read(&data).unwrap() == file, "{words}: it was changed");
        let (ended, _, said) = run("standalone", &["check", "--data", data.to_str().unwrap()], &[]);
        assert_eq!(ended.code(), Some(status), "{said}");
    }
}

#[test]
fn a_wal_whose_file_is_missing_is_not_taken_for_that_of_a_new_one() {
    let data = data_file();
    let wal = data.with_file_name("catchall.db-wal");
    fs::write(&wal, "the latest transactions").unwrap();
    let (status, said) = refused(&data);
    assert_eq!((status, said.contains("the file is missing, but its WAL")), (13, true), "{said}");
    assert_eq!((fs::read(&wal).unwrap().as_slice(), data.exists()), (&b"the latest transactions"[..], false));
}

#[tokio::test]
async fn a_restored_backup_beside_the_wal_of_the_file_before() {
    let data = data_file();
    let mut service = start(&data, &[]).await;
    assert_eq!(service.put("/events/a.com/delivered").await, StatusCode::ACCEPTED);
    let copy = data.with_file_name("copy.db");
    let copied = back_up(&data, &copy);
    assert!(copied.status.success(), "{copied:?}");
    assert_eq!(service.put("/events/a.com/delivered").await, StatusCode::ACCEPTED);
    service.signal("KILL");
    service.ended().await;
    // Whoever restores it forgets the WAL.
    fs::copy(&copy, &data).unwrap();
    let wal = data.with_extension("db-wal");
    let (file, log) = (fs::read(&data).unwrap(), fs::read(&wal).unwrap());
    assert_eq!((&file[18..20], log.is_empty()), (&[1, 1][..], false), "what the test is about");
    let (status, said) = refused(&data);
    assert_eq!((status, said.contains("belongs to another file")), (13, true), "{said}");
    assert!(fs::read(&data).unwrap() == file && fs::read(&wal).unwrap() == log, "they were changed");
    // It is as good as before.
    fs::rename(&wal, data.with_file_name("elsewhere")).unwrap();
    let service = start(&data, &[]).await;
    service.answers("a.com", "unknown", 1, 0).await;
}

#[tokio::test]
async fn a_newer_schema_that_is_only_in_the_wal() {
    let written = used().await;
    let options = SqliteConnectOptions::new().filename(&written).pragma("wal_autocheckpoint", "0");
    let mut newer = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql("pragma user_version = 99").execute(&mut newer).await.unwrap();
    // When this connection ends, the WAL is carried into the file that it is of, but not into a copy.
    let data = data_file();
    let wal = data.with_extension("db-wal");
    fs::copy(&written, &data).unwrap();
    fs::copy(written.with_extension("db-wal"), &wal).unwrap();
    newer.close().await.unwrap();
    let (file, log) = (fs::read(&data).unwrap(), fs::read(&wal).unwrap());
    assert_ne!(file[60..64], [0, 0, 0, 99], "what the test is about");
    let (status, said) = refused(&data);
    assert_eq!((status, said.contains("its schema is 99, this build knows")), (14, true), "{said}");
    assert!(fs::read(&data).unwrap() == file && fs::read(&wal).unwrap() == log, "they were changed");
}

#[tokio::test]
async fn a_file_that_another_process_uses() {
    let data = data_file();
    let mut service = start(&data, &[]).await;
    let other_name = data.parent().unwrap().join(".").join("catchall.db");
    let (status, said) = refused(&other_name);
    assert_eq!(status, 15);
    assert!(said.contains(&format!("(pid {})", service.pid())), "{said}");
    // Nor does another file help on the same port.
    let address = service.address();
    let mut second = command("standalone");
    second.args([
        "--listen",
        &address,
        "--ops-listen",
        "127.0.0.1:0",
        "--data",
        data_file().to_str().unwrap(),
    ]);
    let second = second.output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
    service.signal("KILL");
    service.ended().await;
    // A lock ends with its process, whatever it left behind.
    start(&data, &[]).await;
}

#[tokio::test]
async fn a_check_names_what_is_damaged_and_a_backup_restores_it() {
    let data = data_file();
    let service = start(&data, &[]).await;
    let lines = (0..5000).map(|number| {
        format!("{{\"domain\":\"d{number}.com\",\"event\":\"delivered\",\"id\":\"{number}\"}}\n")
    });
    let headers = [("content-type", "application/x-ndjson")];
    let sent = service.request(Method::POST, "/events", &headers, lines.collect::<String>()).await;
    assert_eq!(sent.0, StatusCode::ACCEPTED);
    let at = |command: &'static str, data: &Path, more: &[&str]| {
        let arguments = [&[command, "--data", data.to_str().unwrap()][..], more].concat();
        let (status, out, said) = run("standalone", &arguments, &[]);
        (status.code().unwrap(), out + &said)
    };
    let copy = data.with_file_name("copy.db");
    let copies = [copy.to_str().unwrap()];
    for _ in 0..2 {
        let (status, said) = at("backup", &data, &copies);
        assert_eq!((status, said.contains("is a complete copy")), (0, true), "{said}");
    }
    let (status, said) = at("check", &data, &[]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("5000 domains with 5000 delivered and 0 bounced events, 5000 claims"), "{said}");
    let (status, said) = at("backup", &data, &[data.to_str().unwrap()]);
    assert_eq!((status, said.contains("it is the data file itself")), (11, true), "{said}");
    let letter = data.with_file_name("letter");
    fs::write(&letter, "dear reader").unwrap();
    let (status, _) = at("backup", &data, &[letter.to_str().unwrap()]);
    assert_eq!((status, fs::read_to_string(&letter).unwrap().as_str()), (12, "dear reader"));
    let (status, said) = at("backup", &data_file(), &copies);
    assert_eq!((status, said.contains("does not exist")), (10, true), "{said}");

    // A copy is a data file like any other, of which one byte in the middle is now wrong.
    let mut damaged = fs::read(&copy).unwrap();
    let middle = damaged.len() / 2 / 1024 * 1024;
    damaged[middle] ^= 0xff;
    let broken = data.with_file_name("broken.db");
    fs::write(&broken, damaged).unwrap();
    let (status, said) = at("check", &broken, &[]);
    assert_eq!((status, said.contains("restore a backup")), (13, true), "{said}");
    let restored = start(&copy, &[]).await;
    let (_, answer) = restored.get("/domains/d77.com").await;
    assert_eq!(answer["delivered"], 1);
}

#[tokio::test]
async fn claims_go_when_they_were_not_met_for_the_retention() {
    let data = data_file();
    let service = start(&data, &[("CATCHALL_EVENT_RETENTION_SECS", "6")]).await;
    let key = [("idempotency-key", "kept")];
    let put = async || service.request(Method::PUT, "/events/kept.com/delivered", &key, "").await.0;
    // While it is met again and again, a claim stays, however old it is.
    let begun = std::time::Instant::now();
    while begun.elapsed().as_secs() < 13 {
        assert_eq!(put().await, StatusCode::ACCEPTED);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(service.get("/domains/kept.com").await.1["delivered"], 1);
    let pruned = "catchall_worker_pruned_claims_total";
    eventually("it is pruned", async || (service.metric(pruned).await >= 1.0).then_some(())).await;
    assert_eq!(put().await, StatusCode::ACCEPTED);
    assert_eq!(service.get("/domains/kept.com").await.1["delivered"], 2);
}
