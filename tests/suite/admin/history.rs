//! History from before: imported once, whatever happens.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use harness::processes::{Service, command, run};
use harness::servers::Servers;
use harness::sql;
use harness::system::{System, data_file, directory};
use serde_json::{Value, json};

use super::{admin, done, export, is_consistent, send, start};

fn file(content: &str) -> String {
    let path: PathBuf = directory().join("history.csv");
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn import(system: &System, file: &str) -> String {
    done(system, &["import", file, "--by", "ann", "--reason", "from before"])
}

#[tokio::test]
async fn history_is_added_to_what_is_counted_once_and_in_either_form() {
    for system in System::both(&[]).await {
        send(&system, &json!([{"domain": "a.com", "event": "delivered", "count": 400}])).await;
        system.domains().answers("a.com", "unknown", 400, 0).await;
        let csv =
            file("bounced,domain,note,delivered\r\n0,a.com,x,601\r\n2,b.com,\"y, z\",0\r\n0,none.com,,0\r\n");
        let said = import(&system, &csv);
        assert_eq!(said, "history.csv is imported: 3 rows with 601 delivered and 2 bounced events\n");
        system.domains().answers("a.com", "catch-all", 1001, 0).await;
        system.domains().answers("b.com", "not catch-all", 0, 2).await;
        assert!(!export(&system, &[]).contains_key("none.com"), "it has no events");
        // The same content under another name.
        let again = directory().join("other.csv");
        fs::copy(&csv, &again).unwrap();
        let said = import(&system, again.to_str().unwrap());
        assert!(said.contains("was already imported, so nothing was added: 3 rows"), "{said}");
        // What is exported is history for another.
        let lines = done(&system, &["export", "--format", "ndjson"]);
        let said = import(&system, &file(&lines));
        assert!(said.contains("is imported: 2 rows with 1001 delivered and 2 bounced events"), "{said}");
        system.domains().answers("a.com", "catch-all", 2002, 0).await;
        // None of it was counted in the last hour but what was sent.
        let (_, totals) = system.domains().get("/totals").await;
        assert_eq!(totals["recent"]["hour"], 400);
        is_consistent(&system, 1000, String::new(), BTreeMap::new()).await;
        let entry: Value =
            serde_json::from_str(&done(&system, &["audit", "--json", "--limit", "1"])).unwrap();
        assert_eq!((&entry["action"], &entry["by"]), (&json!("import"), &json!("ann")));
        assert_eq!(entry["details"]["rows"], 2);
    }
}

/// Rows of the files below: they take many steps.
const ROWS: u64 = 60_000;

/// What is in each of many files that differ: in the sum, it is `n` times what is in one of them.
fn long_file(number: usize) -> String {
    let mut rows = format!("domain,delivered,bounced,{number}\n");
    (0..ROWS).for_each(|n| writeln!(rows, "i{}.com,{n},{}", n % 20_000, u64::from(n % 7 == 0)).unwrap());
    rows
}

async fn has_files(system: &System, files: u64) {
    let all = export(system, &[]);
    assert_eq!(all.len(), 20_000);
    for n in [1, 19_999] {
        assert_eq!(all[&format!("i{n}.com")].1, files * (3 * n + 20_000 + 40_000), "i{n}.com");
    }
    let sum: u64 = all.values().map(|domain| domain.1).sum();
    assert_eq!(sum, files * ROWS * (ROWS - 1) / 2);
    is_consistent(system, 1000, String::new(), BTreeMap::new()).await;
}

/// How many bytes of an import that has not ended are counted: 0 if there is none.
async fn counted_bytes(system: &System) -> u64 {
    let query = "select coalesce(max(bytes_through), 0) from imports where finished_at is null";
    let bytes = match system.place() {
        (_, file) if system.is_standalone() => sql::number_in(file.as_ref(), query).await,
        (_, url) => sql::number(url, query).await,
    };
    bytes.unwrap().unsigned_abs()
}

/// Waits until an import has counted more bytes than these, or has ended.
async fn goes_beyond(system: &System, import: &mut Child, bytes: u64) {
    while import.try_wait().unwrap().is_none() && counted_bytes(system).await <= bytes {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn an_import_that_is_killed_again_and_again_counts_once() {
    const KILLS: usize = 4;
    for system in System::both(&[]).await {
        let (mut files, mut middle, mut path) = (0, 0, String::new());
        // If one is imported before it can be killed, there are more of them.
        while middle < KILLS {
            files += 1;
            path = file(&long_file(files));
            let (bytes, mut before) = (fs::metadata(&path).unwrap().len(), 0);
            loop {
                let mut run = start(&system, &["import", &path, "--by", "tests"]);
                goes_beyond(&system, &mut run, before).await;
                let _ = run.kill();
                run.wait().unwrap();
                let counted = counted_bytes(&system).await;
                if counted == 0 {
                    break;
                }
                assert!(before < counted && counted < bytes, "{before} {counted} {bytes}");
                (before, middle) = (counted, middle + 1);
                if middle == KILLS {
                    break;
                }
            }
        }
        // Two at a time, too.
        let other = start(&system, &["import", &path, "--by", "tests"]);
        import(&system, &path);
        assert!(other.wait_with_output().unwrap().status.success());
        import(&system, &path);
        has_files(&system, files as u64).await;
    }
}

/// Under what it is now, what is counted would count again.
#[tokio::test]
async fn a_file_that_changes_while_it_is_imported_goes_on_as_what_it_was() {
    for system in System::both(&[]).await {
        let mut files = 0;
        // If one is imported before it has changed, there is another.
        let (path, before, said) = loop {
            files += 1;
            let before = long_file(files);
            let path = file(&before);
            let mut run = start(&system, &["import", &path, "--by", "tests"]);
            goes_beyond(&system, &mut run, 0).await;
            fs::write(&path, before.clone() + "late.com,1,0\n").unwrap();
            let output = run.wait_with_output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            if !output.status.success() {
                break (path, before, said);
            }
        };
        let (counted, bytes) = (counted_bytes(&system).await, before.len());
        let begins = format!(
            "history.csv changed during the import: of its original {bytes} bytes, with the SHA-256 "
        );
        let (_, rest) = said.split_once(&begins).expect(&said);
        let (digest, rest) = rest.split_at(64);
        let does = format!(
            ", the first {counted} are already counted. Do not import the changed file: its rows would count \
             twice"
        );
        assert!(rest.starts_with(&does), "{said}");
        let goes_on = format!("`head -c {bytes} FILE | catchall-admin import --sha256 {digest} -`");
        assert!(rest.contains(&goes_on), "{said}");
        // It does not, if it is given something else.
        let arguments = ["import", "--sha256", digest, &path, "--by", "tests"];
        let (status, _, said) = admin(&system, &arguments);
        assert_eq!((status, said.contains("nothing was imported")), (Some(1), true), "{said}");
        fs::write(&path, before).unwrap();
        let said = done(&system, &arguments);
        assert!(said.contains("is imported: 60000 rows"), "{said}");
        has_files(&system, files as u64).await;
    }
}

#[tokio::test]
async fn lines_that_cannot_be_read_are_named_and_nothing_is_imported_unless_they_may_be_left_out() {
    let system = System::standalone(&[]).await;
    let mut rows = String::from("a.com,1,0\nlocalhost,1,0\nb.com,x,0\n");
    (0..30).for_each(|_| rows.push_str("c.com\n"));
    let bad = file(&rows);
    let (status, out, said) = admin(&system, &["import", &bad, "--by", "tests"]);
    assert_eq!((status, &*out), (Some(1), ""));
    let named: Vec<&str> = said.lines().filter(|line| line.starts_with("line ")).collect();
    assert_eq!(named.len(), 20, "{said}");
    assert_eq!(named[0], "line 2: \"localhost\": a domain name has at least two labels, as in example.com");
    assert!(named[1].starts_with("line 3: delivered is \"x\", not a whole number"), "{}", named[1]);
    assert!(said.contains("\nand 12 more\n"), "{said}");
    let refused = "32 lines cannot be read, and nothing was imported: fix them, or leave them out with \
        --skip-invalid\n";
    assert!(said.ends_with(refused), "{said}");
    assert_eq!(export(&system, &[]).len(), 0);
    let said = done(&system, &["import", &bad, "--skip-invalid", "--by", "tests"]);
    assert!(said.contains("1 rows with 1 delivered and 0 bounced events; 32 lines were left out"), "{said}");
    for (content, says) in [
        ("", "history.csv has no rows"),
        ("domain,delivered,bounced\n\n", "history.csv has no rows"),
        ("domain,bounced\na.com,1\n", "the first line has no column \"delivered\""),
    ] {
        let (status, _, said) = admin(&system, &["import", &file(content), "--by", "tests"]);
        assert_eq!((status, said.contains(says)), (Some(1), true), "{said}");
    }
    let folder = directory();
    let (status, _, said) = admin(&system, &["import", folder.to_str().unwrap(), "--by", "tests"]);
    assert_eq!(
        (status, said.contains("is not a file: give - to read standard input")),
        (Some(1), true),
        "{said}"
    );
    let nowhere = folder.join("nothing");
    let (status, _, said) = admin(&system, &["import", nowhere.to_str().unwrap(), "--by", "tests"]);
    assert_eq!((status, said.contains("cannot read")), (Some(1), true), "{said}");
}

#[tokio::test]
async fn standard_input_is_a_file_like_any_other() {
    let system = System::standalone(&[]).await;
    for _ in 0..2 {
        let mut piped = command("admin");
        piped.args(["import", "-", "--by", "tests"]).envs([system.place()]);
        let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        piped.stdin.take().unwrap().write_all(b"a.com,5,0\n").unwrap();
        let output = piped.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && said.starts_with("standard input "), "{said}");
    }
    assert_eq!(export(&system, &[])["a.com"].1, 5);
}

/// What was imported into a file, or begun, goes with it.
#[tokio::test]
async fn a_move_takes_along_which_files_were_imported_and_what_operators_did() {
    let data = data_file();
    let servers = Servers::fresh().await;
    let variables = [("CATCHALL_DATA", data.to_str().unwrap())];
    let mut service = Service::ready("standalone", &Servers::none(), &variables).await;
    let history = file("a.com,1500,0\nb.com,0,1\n");
    let (from, to) =
        (("CATCHALL_DATA", data.to_str().unwrap()), ("CATCHALL_DATABASE_URL", &*servers.database_url));
    let import = |place| run("admin", &["import", &history, "--by", "ann", "--reason", "old"], &[place]);
    assert!(import(from).0.success());
    let since =
        async |service: &Service| service.get("/domains/a.com").await.1["since"].as_str().unwrap().to_owned();
    let before = since(&service).await;
    service.signal("TERM");
    service.ended().await;
    let moved = ["move", "--data", data.to_str().unwrap(), "--to", &servers.database_url];
    for _ in 0..2 {
        let (status, out, said) = run("standalone", &moved, &[]);
        assert!(status.success(), "{out}{said}");
    }
    let (status, out, said) = import(to);
    assert!(status.success() && out.contains("was already imported"), "{out}{said}");
    assert_eq!(servers.counters("a.com").await, (1500, 0));
    let (_, audit, _) = run("admin", &["audit"], &[to]);
    assert!(audit.contains("  import  history.csv  ann  old  {") && audit.lines().count() == 1, "{audit}");
    let query = Service::ready("query", &servers, &[]).await;
    query.answers("a.com", "catch-all", 1500, 0).await;
    assert_eq!(since(&query).await, before, "what it is since then");
    // Nothing is written to what has gone.
    let (status, _, said) = run("admin", &["reset", "a.com", "--by", "ann", "--reason", "late"], &[from]);
    assert_eq!((status.code(), said.contains("has been moved to")), (Some(18), true), "{said}");
}
