//! The real programs, started by a test.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{HeaderMap, Method, Request, StatusCode};
use serde_json::Value;

use crate::access::Access;
use crate::http::send;
pub use crate::program::{binary, command, run};
use crate::servers::{Servers, eventually};

/// A deadline that no event meets, for tests in which none may be refused: a broker or a disk that is slow on a
/// busy machine is no refusal.
pub const LONG_DEADLINE: (&str, &str) = ("CATCHALL_PUBLISH_DEADLINE_MS", "60000");

/// A running service. Dropping it kills the process.
pub struct Service {
    name: &'static str,
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    access: Access,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            for line in self.log.lock().unwrap().iter() {
                eprintln!("{}: {line}", self.name);
            }
        }
    }
}

impl Service {
    /// Starts a service on free ports and returns once it listens, even if its dependencies are unavailable.
    pub async fn start(name: &'static str, servers: &Servers, more: &[(&str, &str)]) -> Self {
        Self::launch(name, servers, more).await.opened().await
    }

    /// Waits until it listens, if it is a service that listens.
    async fn opened(self) -> Self {
        if self.logged("listen").is_some() {
            self.opens().await;
        }
        self
    }

    /// Starts a service on free ports and returns once it has bound them.
    pub async fn launch(name: &'static str, servers: &Servers, more: &[(&str, &str)]) -> Self {
        Self::launch_by(command(name), name, servers, more, Access::default()).await
    }

    /// Starts a service that asks for what `access` has, and returns once it is ready.
    pub async fn guarded(
        name: &'static str,
        servers: &Servers,
        more: &[(&str, &str)],
        access: Access,
    ) -> Self {
        let variables: Vec<(String, String)> = access
            .of_service()
            .iter()
            .chain(more)
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        let variables: Vec<_> = variables.iter().map(|(name, value)| (&**name, &**value)).collect();
        let service = Self::launch_by(command(name), name, servers, &variables, access).await.opened().await;
        service.becomes_ready().await;
        service
    }

    async fn launch_by(
        mut command: Command,
        name: &'static str,
        servers: &Servers,
        more: &[(&str, &str)],
        access: Access,
    ) -> Self {
        let mut variables = HashMap::from([
            ("CATCHALL_AMQP_URL", &*servers.amqp_url),
            ("CATCHALL_DATABASE_URL", &servers.database_url),
            ("CATCHALL_REPLICA_URL", &servers.replica_url),
            ("CATCHALL_LISTEN", "127.0.0.1:0"),
            ("CATCHALL_OPS_LISTEN", "127.0.0.1:0"),
            ("CATCHALL_LOG_FORMAT", "json"),
        ]);
        variables.extend(more.iter().copied());
        // Of servers that a process has none of, or finds in another way.
        variables.retain(|_, value| !value.is_empty());
        let mut child = command.envs(variables).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, stderr) = (Arc::clone(&log), BufReader::new(child.stderr.take().unwrap()));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
        });
        let service = Self { name, child, log, access };
        eventually("the service says where it listens", async || service.logged("ops_listen")).await;
        service
    }

    /// Waits until the service accepts clients.
    pub async fn opens(&self) {
        let open = async || self.has_logged("open to clients").then_some(());
        eventually("the service is open to clients", open).await;
    }

    /// Starts a service and returns once it is ready.
    pub async fn ready(name: &'static str, servers: &Servers, more: &[(&str, &str)]) -> Self {
        let service = Self::start(name, servers, more).await;
        service.becomes_ready().await;
        service
    }

    /// The same for a command that becomes the service in the end.
    pub async fn ready_by(
        command: Command,
        name: &'static str,
        servers: &Servers,
        more: &[(&str, &str)],
    ) -> Self {
        let service = Self::launch_by(command, name, servers, more, Access::default()).await.opened().await;
        service.becomes_ready().await;
        service
    }

    /// Waits until `/readyz` is green.
    pub async fn becomes_ready(&self) {
        eventually("the service is ready", async || (self.readyz().await.0 == StatusCode::OK).then_some(()))
            .await;
    }

    /// Waits until `/readyz` is red and says `reason`.
    pub async fn becomes_unready(&self, reason: &str) {
        eventually(&format!("/readyz says {reason:?}"), async || {
            let (status, body) = self.readyz().await;
            (status == StatusCode::SERVICE_UNAVAILABLE && body.contains(reason)).then_some(())
        })
        .await;
        assert_eq!(self.ops("/livez").await.0, StatusCode::OK, "a fault outside must not turn /livez red");
    }

    /// The answer of `/readyz`.
    pub async fn readyz(&self) -> (StatusCode, String) {
        self.ops("/readyz").await
    }

    /// The answer of a path of the operations routes.
    pub async fn ops(&self, path: &str) -> (StatusCode, String) {
        self.ops_with(path, &[]).await
    }

    /// The same with headers of the request.
    pub async fn ops_with(&self, path: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
        let address = self.ops_address();
        let mut request = Request::get(format!("http://{address}{path}"));
        let bearer = self.access.bearer.iter().map(|bearer| ("authorization", &**bearer));
        for (name, value) in bearer.chain(headers.iter().copied()) {
            request = request.header(name, value);
        }
        let request = request.body(Full::default()).unwrap();
        if let Some(tls) = &self.access.tls {
            let (status, _, body) = Box::pin(tls.send(&address, request)).await.unwrap();
            return (status, body);
        }
        let (status, _, body) = send(request).await;
        (status, body)
    }

    /// How to get in.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The value of a metric; 0 for one that was never set.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, metrics) = self.ops("/metrics").await;
        metric(&metrics, name)
    }

    /// The URL of the service.
    #[must_use]
    pub fn url(&self) -> String {
        let address = self.address();
        match &self.access.tls {
            None => format!("http://{address}"),
            // Its certificate is for this name.
            Some(_) => address.replace("127.0.0.1", "https://localhost"),
        }
    }

    /// Host and port of the service.
    #[must_use]
    pub fn address(&self) -> String {
        self.logged("listen").unwrap()
    }

    /// Host and port of its operations routes.
    #[must_use]
    pub fn ops_address(&self) -> String {
        self.logged("ops_listen").unwrap()
    }

    /// Where mail servers ask, once they can.
    pub async fn socketmap_address(&self) -> String {
        eventually("the service answers mail servers", async || self.logged("socketmap")).await
    }

    /// The process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first value that was logged under this name.
    fn logged(&self, field: &str) -> Option<String> {
        self.log.lock().unwrap().iter().find_map(|line| line[field].as_str().map(str::to_owned))
    }

    /// The lines of the log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().iter().map(ToString::to_string).collect()
    }

    /// Waits until a line of the log contains a text. The log comes by another way than answers, and may come
    /// later than what it is about.
    pub async fn logs(&self, text: &str) {
        eventually(&format!("{text:?} is in the log"), async || self.has_logged(text).then_some(())).await;
    }

    /// The same for so many lines, and no more.
    ///
    /// # Panics
    ///
    /// When there are more.
    pub async fn logs_times(&self, text: &str, times: usize) {
        let what = format!("{text:?} is in the log {times} times");
        eventually(&what, async || (self.count_logged(text) >= times).then_some(())).await;
        assert_eq!(self.count_logged(text), times, "{text:?}");
    }

    /// Whether any line of the log contains a text.
    #[must_use]
    pub fn has_logged(&self, text: &str) -> bool {
        self.count_logged(text) > 0
    }

    /// How many lines of the log contain a text.
    #[must_use]
    pub fn count_logged(&self, text: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.to_string().contains(text)).count()
    }

    /// Sends a request to the service.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (StatusCode, HeaderMap, String) {
        let uri = format!("{}{path}", self.url());
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(request.body(Full::new(body.into())).unwrap()).await
    }

    /// Sends an array of events in one request, which must be accepted.
    pub async fn post_events(&self, events: &Value) {
        let headers = [("content-type", "application/json")];
        let (status, _, answer) = self.request(Method::POST, "/events", &headers, events.to_string()).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    }

    /// Sends a PUT without a body.
    pub async fn put(&self, path: &str) -> StatusCode {
        self.request(Method::PUT, path, &[], "").await.0
    }

    /// Sends a GET and parses the JSON of the answer.
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        let (status, _, body) = self.request(Method::GET, path, &[], "").await;
        (status, serde_json::from_str(&body).unwrap())
    }

    /// Waits until the service answers with this status and these counters.
    pub async fn answers(&self, domain: &str, status: &str, delivered: u64, bounced: u64) {
        let expected = serde_json::json!({
            "domain": domain, "status": status, "delivered": delivered, "bounced": bounced,
        });
        let mut last = Value::Null;
        let path = format!("/domains/{domain}");
        let begun = std::time::Instant::now();
        while last != expected {
            assert!(begun.elapsed().as_secs() < 60, "{domain} is {last}, not {expected}");
            last = self.get(&path).await.1;
            if let Some(fields) = last.as_object_mut() {
                // The time is another each time, and there is none for what is unknown.
                let since = fields.remove("since").unwrap_or_default();
                let unknown = fields.get("status").is_some_and(|status| status == "unknown");
                assert!(since.is_null() || !unknown, "{domain} is unknown since {since}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Sends a signal, as in "TERM".
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// How the process has ended, if it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until the process has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        eventually("the process has ended", async || self.child.try_wait().unwrap()).await
    }
}

/// The value of a metric as Prometheus reads it; 0 for one that was never set.
#[must_use]
pub fn metric(metrics: &str, name: &str) -> f64 {
    let values = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    values.filter_map(|value| value.parse::<f64>().ok()).sum()
}
