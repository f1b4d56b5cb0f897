//! Where an export may go, and what is left of what was there.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use harness::processes::command;
use harness::system::{System, directory};
use serde_json::json;

use super::{admin, done, send, start};

const ROWS: &str = "domain,status,delivered,bounced,since\r\na.com,not catch-all,0,1,";

async fn with_a_domain() -> System {
    let system = System::standalone(&[]).await;
    send(&system, &json!([{"domain": "a.com", "event": "bounced"}])).await;
    system
}

fn has_rows(file: &Path) -> bool {
    fs::read_to_string(file).unwrap().starts_with(ROWS)
}

#[tokio::test]
async fn a_file_is_replaced_where_its_name_leads_to_and_keeps_its_mode() {
    let system = with_a_domain().await;
    let (folder, elsewhere) = (directory(), directory());
    let (secret, link, next) =
        (elsewhere.join("secret.csv"), folder.join("link.csv"), folder.join("next.csv"));
    fs::write(&secret, "before").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o640)).unwrap();
    let inode = fs::metadata(&secret).unwrap().ino();
    symlink(&secret, &link).unwrap();
    symlink("link.csv", &next).unwrap();
    let said = done(&system, &["export", next.to_str().unwrap()]);
    assert_eq!(said, format!("{} has 1 domains\n", next.display()));
    assert!(has_rows(&secret) && link.is_symlink() && next.is_symlink());
    let metadata = fs::metadata(&secret).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert_ne!(metadata.ino(), inode, "it was replaced as a whole");
    // A link to a file that does not exist yet.
    let (new, link) = (elsewhere.join("new.csv"), folder.join("to-new.csv"));
    symlink(&new, &link).unwrap();
    done(&system, &["export", link.to_str().unwrap()]);
    assert!(has_rows(&new) && link.is_symlink());
    fs::write(folder.join("usual"), "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode();
    assert_eq!(mode(&new), mode(&folder.join("usual")));
    for (folder, files) in [(&folder, 4), (&elsewhere, 2)] {
        assert_eq!(fs::read_dir(folder).unwrap().count(), files, "nothing else is left");
    }
}

#[tokio::test]
async fn what_is_no_file_is_written_to_and_stays_what_it_is() {
    let system = with_a_domain().await;
    let folder = directory();
    let pipe = folder.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut reader = Command::new("timeout");
    let reader = reader.args(["60", "cat"]).arg(&pipe).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(done(&system, &["export", pipe.to_str().unwrap()]), "");
    let read = String::from_utf8(reader.wait_with_output().unwrap().stdout).unwrap();
    assert!(read.starts_with(ROWS), "{read}");
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    // As /dev/stdout is.
    let out = folder.join("out");
    symlink("/proc/self/fd/1", &out).unwrap();
    let printed = done(&system, &["export", out.to_str().unwrap()]);
    assert!(printed.starts_with(ROWS) && printed.ends_with("Z\r\n"), "{printed}");
    let file = folder.join("file");
    fs::write(&file, "first\n").unwrap();
    let mut export = command("admin");
    export.args(["export", out.to_str().unwrap()]).envs([system.place()]);
    let export = export.stdout(fs::OpenOptions::new().append(true).open(&file).unwrap());
    assert!(export.stderr(Stdio::null()).status().unwrap().success());
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("first\n{printed}"));
    assert!(out.is_symlink());
    let (status, _, said) = admin(&system, &["export", folder.to_str().unwrap()]);
    assert_eq!((status, said.contains("cannot write")), (Some(1), true), "{said}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 3, "nothing else is left");
}

#[tokio::test]
async fn exports_to_one_name_do_not_mix() {
    let system = System::standalone(&[]).await;
    let events = (0..7000).map(|n| json!({"domain": format!("d{n}.com"), "event": "bounced"}));
    send(&system, &events.collect()).await;
    let file = directory().join("all.csv");
    let runs: Vec<_> = (0..4).map(|_| start(&system, &["export", file.to_str().unwrap()])).collect();
    for run in runs {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 7001);
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
}
