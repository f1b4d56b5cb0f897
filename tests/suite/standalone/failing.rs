//! A disk on which a commit fails: whether it counts is not known before the data file is read again.

use harness::failing_disk::FailingDisk;
use harness::processes::Service;
use harness::system::data_file;
use hyper::{Method, StatusCode};
use std::path::Path;

const EVENT: &str = "/events/failing.example/delivered";

/// Starts the process on this file, on this disk.
async fn start(disk: &FailingDisk, data: &Path) -> Service {
    let [preload, broken] = disk.variables();
    super::start(data, &[(preload.0, &*preload.1), (broken.0, &*broken.1)]).await
}

/// Sends the event under a key.
async fn send(service: &Service, key: &str) -> (StatusCode, String) {
    let (status, _, body) = service.request(Method::PUT, EVENT, &[("idempotency-key", key)], "").await;
    (status, body)
}

/// Has two events accepted and breaks the disk. The third cannot be committed, and neither can what follows.
async fn with_a_failed_commit(disk: &FailingDisk, data: &Path) -> Service {
    let service = start(disk, data).await;
    for key in ["one", "two"] {
        assert_eq!(send(&service, key).await.0, StatusCode::ACCEPTED);
    }
    disk.fails();
    for key in ["three", "four"] {
        let (status, body) = send(&service, key).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        assert!(body.contains("\"urn:catchall:problem:maybe-counted\""), "{body}");
    }
    service.becomes_unready("disk I/O error").await;
    service
}

/// Sends all events once more, as their clients do. Each must count once.
async fn all_count_once(service: &Service) {
    for key in ["one", "two", "three", "four"] {
        let (status, body) = send(service, key).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    }
    service.answers("failing.example", "unknown", 4, 0).await;
}

#[tokio::test]
async fn a_commit_that_failed_may_be_sent_again_when_the_disk_works() {
    let (disk, data) = (FailingDisk::default(), data_file());
    let service = with_a_failed_commit(&disk, &data).await;
    disk.works();
    service.becomes_ready().await;
    all_count_once(&service).await;
}

#[tokio::test]
async fn a_commit_that_failed_before_a_crash_counts_once_either_way() {
    let (disk, data) = (FailingDisk::default(), data_file());
    let mut service = with_a_failed_commit(&disk, &data).await;
    service.signal("KILL");
    service.ended().await;
    disk.works();
    let service = start(&disk, &data).await;
    let (_, answer) = service.get("/domains/failing.example").await;
    let found = answer["delivered"].as_u64().unwrap();
    assert!((2..=4).contains(&found), "what was accepted is there, and nothing twice: {found}");
    all_count_once(&service).await;
}
