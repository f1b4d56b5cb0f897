//! `catchall-admin`, on the ledger of a cluster and on the data file of a standalone that serves it.

mod exports;
mod history;
mod thresholds;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use harness::processes::{Service, command, run};
use harness::servers::{Servers, eventually};
use harness::system::{System, data_file, directory};
use hyper::StatusCode;
use serde_json::{Value, json};

/// Runs the tool to its end: its exit status, and what it printed.
fn admin(system: &System, arguments: &[&str]) -> (Option<i32>, String, String) {
    let (status, out, said) = run("admin", arguments, &[system.place()]);
    (status.code(), out, said)
}

/// The same for a command that has to succeed.
fn done(system: &System, arguments: &[&str]) -> String {
    let (status, out, said) = admin(system, arguments);
    assert_eq!(status, Some(0), "{arguments:?}: {out}{said}");
    out
}

/// Starts the tool.
fn start(system: &System, arguments: &[&str]) -> Child {
    let mut command = command("admin");
    command.args(arguments).envs([system.place()]).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Kills it so many milliseconds after it has said something, unless it has ended. Returns what that was.
async fn kill(mut child: Child, milliseconds: u64) -> String {
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let (line, _stderr) = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        (line, stderr)
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    let _ = child.kill();
    child.wait().unwrap();
    line
}

async fn send(system: &System, events: &Value) {
    system.events().post_events(events).await;
}

/// A domain as it is exported: status, delivered, bounced, and whether it is said since when.
type Exported = (String, u64, u64, bool);

fn export(system: &System, arguments: &[&str]) -> BTreeMap<String, Exported> {
    let out = done(system, &[&["export"], arguments].concat());
    let mut lines = out.split("\r\n");
    assert_eq!(lines.next(), Some("domain,status,delivered,bounced,since"));
    let row = |line: &str| {
        let [domain, status, delivered, bounced, since] = line.split(',').collect::<Vec<_>>()[..] else {
            panic!("{line:?}")
        };
        let counts = (delivered.parse().unwrap(), bounced.parse().unwrap());
        (domain.to_owned(), (status.to_owned(), counts.0, counts.1, !since.is_empty()))
    };
    lines.filter(|line| !line.is_empty()).map(row).collect()
}

/// What the feed says after a position: the latest of each domain. Moves the position on.
async fn follow(service: &Service, position: &mut String, known: &mut BTreeMap<String, String>) {
    loop {
        let since = if position.is_empty() { String::new() } else { format!("since={position}&") };
        let path = format!("/changes?{since}limit=1000");
        // A replica that is behind cancels reads, and a client asks again.
        let page = eventually("the feed can be read", async || {
            let (status, page) = service.get(&path).await;
            (status == StatusCode::OK).then_some(page)
        })
        .await;
        page["position"].as_str().unwrap().clone_into(position);
        let changes = page["changes"].as_array().unwrap();
        for change in changes {
            let text = |name: &str| change[name].as_str().unwrap().to_owned();
            known.insert(text("domain"), text("status"));
        }
        if changes.is_empty() {
            return;
        }
    }
}

/// Checks that statuses, lists, totals and what a follower `knows` are as the rule makes them of the counters.
async fn is_consistent(
    system: &System,
    threshold: u64,
    mut position: String,
    mut known: BTreeMap<String, String>,
) {
    let all = export(system, &[]);
    let mut expected = json!({"catch-all": 0, "not catch-all": 0, "unknown": 0});
    let (mut delivered_events, mut bounced_events) = (0, 0);
    for (domain, (status, delivered, bounced, has_since)) in &all {
        let rule = match (*delivered, *bounced) {
            (_, 1..) => "not catch-all",
            (delivered, 0) if delivered > threshold => "catch-all",
            _ => "unknown",
        };
        // It is known since when only if the status was noted.
        assert_eq!(
            (status.as_str(), *has_since),
            (rule, rule != "unknown"),
            "{domain} {delivered} {bounced}"
        );
        expected[rule] = (expected[rule].as_u64().unwrap() + 1).into();
        delivered_events += delivered;
        bounced_events += bounced;
    }
    for status in ["catch-all", "not catch-all", "unknown"] {
        let listed = export(system, &["--status", status]);
        let same: BTreeMap<_, _> = all
            .iter()
            .filter(|(_, domain)| domain.0 == status)
            .map(|(n, d)| (n.clone(), d.clone()))
            .collect();
        assert!(listed == same, "{status}: {} are listed of {}", listed.len(), same.len());
    }
    let events = json!({"delivered": delivered_events, "bounced": bounced_events});
    eventually("the totals are those of a count", async || {
        let (_, totals) = system.domains().get("/totals").await;
        (totals["domains"] == expected && totals["events"] == events).then_some(())
    })
    .await;
    let statuses: BTreeMap<String, String> = all.into_iter().map(|(name, domain)| (name, domain.0)).collect();
    eventually("the feed has all changes", async || {
        follow(system.domains(), &mut position, &mut known).await;
        let of = |name: &str| statuses.get(name).map_or("unknown", String::as_str);
        let right = known.iter().all(|(name, status)| status == of(name))
            && statuses.iter().all(|(name, status)| status == "unknown" || known.contains_key(name));
        right.then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_count_of_a_domain_begins_anew_and_what_was_counted_stays_counted() {
    for system in System::both(&[]).await {
        let query = system.domains();
        let first = json!([
            {"domain": "a.com", "event": "delivered", "count": 1500, "id": "one"},
            {"domain": "b.com", "event": "bounced"}, {"domain": "b.com", "event": "delivered", "count": 2},
            {"domain": "c.com", "event": "delivered"},
        ]);
        send(&system, &first).await;
        query.answers("a.com", "catch-all", 1500, 0).await;
        let mut known = BTreeMap::new();
        let mut position = String::new();
        eventually("both changes are in the feed", async || {
            follow(query, &mut position, &mut known).await;
            (known.len() == 2).then_some(())
        })
        .await;
        let reset = |domain, reason| done(&system, &["reset", domain, "--by", "ann", "--reason", reason]);
        let said = reset("A.com.", "they moved");
        assert_eq!(
            said,
            "a.com starts again at 0: it was catch-all, with 1500 delivered and 0 bounced events\n"
        );
        reset("b.com", "so did they");
        reset("c.com", "for fun");
        query.answers("a.com", "unknown", 0, 0).await;
        eventually("the resets are in the feed", async || {
            follow(query, &mut position, &mut known).await;
            (known.values().all(|status| status == "unknown")).then_some(())
        })
        .await;
        is_consistent(&system, 1000, position.clone(), known.clone()).await;
        let (status, _, said) = admin(&system, &["reset", "a.com", "--by", "ann", "--reason", "again"]);
        assert_eq!(status, Some(1));
        assert_eq!(said, "catchall-admin: a.com has had no events: there is nothing to reset\n");

        // What was counted once counts nothing again; what is new does.
        send(&system, &first).await;
        query.answers("b.com", "not catch-all", 2, 1).await;
        send(&system, &json!([{"domain": "a.com", "event": "delivered", "count": 1001}])).await;
        query.answers("a.com", "catch-all", 1001, 0).await;
        is_consistent(&system, 1000, position, known).await;

        let entries = done(&system, &["audit", "--json"]);
        let entries: Vec<Value> = entries.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(entries.len(), 3);
        let mut oldest = entries[2].clone();
        assert!(oldest["at"].take().as_str().unwrap().ends_with('Z'));
        let expected = json!({
            "at": null, "action": "reset", "subject": "a.com", "by": "ann", "reason": "they moved",
            "details": {"delivered": 1500, "bounced": 0, "status": "catch-all"},
        });
        assert_eq!(oldest, expected);
        let lines = done(&system, &["audit", "--limit", "1"]);
        assert!(lines.contains("  reset  c.com  ann  for fun  {") && lines.lines().count() == 1, "{lines}");
    }
}

#[tokio::test]
async fn an_export_has_what_is_asked_for_and_a_file_appears_when_it_is_complete() {
    for system in System::both(&[]).await {
        let events = (0..7000).map(|n| json!({"domain": format!("d{n}.com"), "event": "bounced"}));
        send(&system, &events.collect()).await;
        send(&system, &json!([{"domain": "z.com", "event": "delivered", "count": 2000}])).await;
        system.domains().answers("z.com", "catch-all", 2000, 0).await;
        let all = export(&system, &[]);
        assert_eq!((all.len(), &all["z.com"]), (7001, &("catch-all".to_owned(), 2000, 0, true)));
        let out = done(&system, &["export", "--status", "catch-all", "--format", "ndjson"]);
        let line: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(line, system.domains().get("/domains/z.com").await.1);
        let file = directory().join("all.csv");
        fs::write(&file, "before").unwrap();
        let said = done(&system, &["export", file.to_str().unwrap()]);
        assert_eq!(said, format!("{} has 7001 domains\n", file.display()));
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 7002);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        let nowhere = file.join("below").to_str().unwrap().to_owned();
        let (status, _, said) = admin(&system, &["export", &nowhere]);
        assert_eq!((status, said.contains("cannot write")), (Some(1), true), "{said}");
    }
}

#[tokio::test]
async fn an_export_of_a_file_that_is_damaged_beyond_its_header_ends_with_the_status_of_a_damaged_file() {
    let system = System::standalone(&[]).await;
    let events = (0..7000).map(|n| json!({"domain": format!("d{n}.com"), "event": "bounced"}));
    send(&system, &events.collect()).await;
    let copy = directory().join("copy.db");
    let (status, _, said) = run("standalone", &["backup", copy.to_str().unwrap()], &[system.place()]);
    assert!(status.success(), "{said}");
    // What is read when the file is opened is at its beginning.
    let mut damaged = fs::read(&copy).unwrap();
    let quarter = damaged.len() / 4;
    damaged[quarter..3 * quarter].fill(0x5a);
    fs::write(&copy, damaged).unwrap();
    let (status, _, said) = run("admin", &["export"], &[("CATCHALL_DATA", copy.to_str().unwrap())]);
    assert_eq!(status.code(), Some(13), "{said}");
    let begins =
        format!("catchall-admin: the data file {} is damaged (", copy.canonicalize().unwrap().display());
    assert!(said.starts_with(&begins) && said.ends_with("): restore a backup\n"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    // What was there before is not touched by an export that fails.
    let file = directory().join("all.csv");
    fs::write(&file, "before").unwrap();
    let arguments = ["export", file.to_str().unwrap()];
    let (status, _, said) = run("admin", &arguments, &[("CATCHALL_DATA", copy.to_str().unwrap())]);
    assert_eq!((status.code(), &*fs::read_to_string(&file).unwrap()), (Some(13), "before"), "{said}");
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn what_is_wrong_with_the_arguments_or_the_place_is_said_in_a_sentence() {
    let missing = data_file();
    let (missing, nobody) = (missing.to_str().unwrap(), "postgres://alice:s3cret@127.0.0.1:1/none");
    let (url, data) = (("CATCHALL_DATABASE_URL", nobody), ("CATCHALL_DATA", missing));
    for (arguments, variables, status, says) in [
        (
            &["audit"][..],
            &[][..],
            2,
            "CATCHALL_DATABASE_URL (--database-url <URL>) or CATCHALL_DATA (--data <FILE>) is required",
        ),
        (&["audit"], &[url, data], 2, "are both set: set only one of them"),
        (&["audit"], &[url], 1, "connection refused"),
        (&["export"], &[url], 1, "connection refused"),
        (&["audit"], &[data], 10, "does not exist"),
        (&["export"], &[data], 10, "does not exist"),
        (&["audit", "--database-url", "mysql://alice:s3cret@db"], &[], 2, "not a Postgres URL"),
        (
            &["audit", "--database-url", "postgres://a:s3cret@db.example/c"],
            &[],
            2,
            "leads to another machine",
        ),
        (&["reset", "localhost", "--reason", "x"], &[data], 2, "at least two labels"),
        (&["reset", "a.com"], &[data], 2, "--reason <TEXT> is required"),
        (&["reset", "a.com", "--reason", " "], &[data], 2, "it is empty"),
        (&["reset", "a.com", "--reason", "a\nb"], &[data], 2, "it has to be one line"),
        (&["reclassify", "--threshold=-1"], &[data], 2, "--threshold <N> is not valid: invalid digit"),
        (&["import", "--sha256", "12", "x"], &[data], 2, "it has to be 64 hexadecimal digits"),
        (&["export", "--status", "maybe"], &[data], 2, "a status is"),
        (&["export", "--format", "xml"], &[data], 2, "one of csv, ndjson"),
    ] {
        let (ended, out, said) = run("admin", arguments, variables);
        assert_eq!(ended.code(), Some(status), "{arguments:?}: {out}{said}");
        assert!(said.contains(says) && !said.contains("s3cret"), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn a_schema_that_does_not_fit_is_told_and_a_file_of_before_is_brought_up_to_date() {
    let servers = Servers::bare().await;
    let (status, _, said) = run("admin", &["audit"], &[("CATCHALL_DATABASE_URL", &servers.database_url)]);
    assert_eq!((status.code(), said.contains("run catchall-migrate")), (Some(1), true), "{said}");
    // A file that is served by nobody.
    let system = System::standalone(&[]).await;
    send(&system, &json!([{"domain": "a.com", "event": "bounced"}])).await;
    let copy = directory().join("copy.db");
    let copy = copy.to_str().unwrap();
    let (status, _, said) = run("standalone", &["backup", copy], &[system.place()]);
    assert!(status.success(), "{said}");
    let place = [("CATCHALL_DATA", copy)];
    let (status, _, said) = run("admin", &["reset", "a.com", "--by", "x", "--reason", "y"], &place);
    assert!(status.success(), "{said}");
    let (status, out, said) = run("standalone", &["check", "--data", copy], &[]);
    assert!(status.success() && out.contains("is sound: 0 domains"), "{out}{said}");
    // The name is that of the system's user.
    let (_, out, _) = run("admin", &["reclassify"], &place);
    assert!(out.starts_with("reclassified by the threshold 1000: 0 of 0 domains"), "{out}");
    let user = std::process::Command::new("id").arg("-un").output().unwrap();
    let user = String::from_utf8(user.stdout).unwrap();
    let (_, out, _) = run("admin", &["audit", "--limit", "1"], &place);
    assert!(out.contains(&format!("  reclassify  1000  {}  -  {{", user.trim())), "{out}");
}
