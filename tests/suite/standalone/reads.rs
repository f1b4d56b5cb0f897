//! Reading the data file.

use std::fs;

use futures::future::join_all;
use harness::system::data_file;
use hyper::{Method, StatusCode};
use serde_json::Value;

use super::start;

#[tokio::test]
async fn any_number_of_look_ups_share_a_few_threads() {
    let service = start(&data_file(), &[("CATCHALL_THREADS", "1")]).await;
    let names: Vec<String> = (0..1000).map(|number| format!("d{number}.example.com")).collect();
    let body = Value::from(names).to_string();
    let json = [("content-type", "application/json")];
    let ask = async || {
        let (status, _, answer) = service.request(Method::POST, "/domains/lookup", &json, body.clone()).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    };
    ask().await;
    // Each connection to the file is a thread, has a cache, and stays.
    let threads = || fs::read_dir(format!("/proc/{}/task", service.pid())).unwrap().count();
    let before = threads();
    join_all((0..50).map(|_| ask())).await;
    assert!(threads() <= before + 4, "{before} became {}", threads());
}
