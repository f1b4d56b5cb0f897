//! A disk that is full.

use std::fs;
use std::io::Write;
use std::process::{Child, Stdio};

use harness::proxy::{self, reserve};
use harness::servers::eventually;
use harness::small_disk::{on_small_disk, seen_by};
use harness::system::data_file;
use hyper::StatusCode;

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_full_disk_is_a_503_that_counts_nothing_and_ends_when_there_is_room() {
    let data = data_file();
    let directory = data.parent().unwrap().to_str().unwrap().to_owned();
    let reserved = [reserve(), reserve()];
    let [address, ops] = reserved.each_ref().map(proxy::address);
    let binary = harness::processes::binary("standalone");
    let serve = format!(
        "'{binary}' --listen {address} --ops-listen {ops} --data '{directory}/catchall.db' --log-format json"
    );
    let Some(mut command) = on_small_disk(data.parent().unwrap(), 6, &serve) else { return };
    let process = Killed(command.stderr(Stdio::null()).spawn().unwrap());
    // What is in its file system is reached through the process.
    let ballast_path = seen_by(process.0.id(), data.parent().unwrap()).join("ballast");
    let client = harness::http::HttpClient::with_keep_alive();
    let timeout = std::time::Duration::from_secs(20);
    let post = async |round: usize| {
        let lines =
            (0..2000).map(|line| format!("{{\"domain\":\"d{round}-{line}.com\",\"event\":\"delivered\"}}\n"));
        let request = hyper::Request::post(format!("http://{address}/events"))
            .header("content-type", "application/x-ndjson")
            .body(http_body_util::Full::from(lines.collect::<String>()))
            .unwrap();
        client.send(request, timeout).await
    };
    eventually("it serves", async || {
        post(0).await.ok().filter(|(status, _)| *status == StatusCode::ACCEPTED)
    })
    .await;
    let mut ballast = fs::File::create(&ballast_path).unwrap();
    let mut accepted = 1;
    let refused = loop {
        let _ = ballast.write_all(&vec![1; 256 * 1024]);
        let (status, body) = post(accepted).await.unwrap();
        if status != StatusCode::ACCEPTED {
            break (status, body);
        }
        accepted += 1;
        assert!(accepted < 1000, "the disk does not fill");
    };
    assert_eq!(refused.0, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.1);
    assert!(refused.1.contains("\"urn:catchall:problem:not-counted\""), "{}", refused.1);
    let (status, reason) = client.get(&format!("http://{ops}/readyz"), timeout).await.unwrap();
    assert_eq!(
        (status, reason.contains("the disk is full")),
        (StatusCode::SERVICE_UNAVAILABLE, true),
        "{reason}"
    );
    // Everything that was accepted can still be read, and nothing of what was refused.
    let delivered = async |round: usize| {
        let url = format!("http://{address}/domains/d{round}-1999.com");
        let (_, body) = client.get(&url, timeout).await.unwrap();
        serde_json::from_str::<serde_json::Value>(&body).unwrap()["delivered"].as_u64().unwrap()
    };
    assert_eq!((delivered(accepted - 1).await, delivered(accepted).await), (1, 0));
    drop(ballast);
    fs::remove_file(ballast_path).unwrap();
    eventually("it is ready by itself", async || {
        client
            .get(&format!("http://{ops}/readyz"), timeout)
            .await
            .ok()
            .filter(|(status, _)| status.is_success())
    })
    .await;
    assert_eq!(post(accepted).await.unwrap().0, StatusCode::ACCEPTED);
    assert_eq!((delivered(0).await, delivered(accepted).await), (1, 1));
}

#[test]
fn a_disk_without_room_for_the_file_is_said_at_the_start() {
    let data = data_file();
    let directory = data.parent().unwrap().to_str().unwrap().to_owned();
    let binary = harness::processes::binary("standalone");
    let serve = format!(
        "sh -c \"head -c 4M /dev/zero >'{directory}/ballast' 2>/dev/null; exec '{binary}' --listen 127.0.0.1:0 \
         --ops-listen 127.0.0.1:0 --data '{directory}/catchall.db'\""
    );
    let Some(mut command) = on_small_disk(data.parent().unwrap(), 1, &serve) else { return };
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.contains("is full")), (Some(16), true), "{said}");
}
