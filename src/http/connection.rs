//! One connection: its protocol, the sizes of its buffers, and when it ends.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Request, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

use super::access::Visitor;
use super::activity::{Activity, Decision, FIRST_REQUEST_TIMEOUT};
use super::answer::Answer;
use super::body;
use super::places::ConnectionPlace;
use super::stream::Stream;

/// Most bytes of a request that are buffered over HTTP/1.1, and most of a response. It is also the longest
/// head, with room for the longest domain name and the longest key many times over.
const HTTP1_BUFFER: usize = 16 * 1024;

/// Most requests under way on one HTTP/2 connection.
const STREAMS: u32 = 200;

/// Most unread bytes of bodies on an HTTP/2 connection, both in total and per request. With a round trip of
/// 20 ms a client can send 6 MB/s.
const HTTP2_WINDOW: u32 = 128 * 1024;

/// Largest HTTP/2 frame: the lowest limit that the protocol allows.
const HTTP2_FRAME: u32 = 16 * 1024;

/// Largest head of a request over HTTP/2, decompressed.
const HTTP2_HEAD: u32 = 16 * 1024;

/// Bytes of a response that are buffered over HTTP/2, beyond one [step](super::answer::STEP).
const HTTP2_SEND_BUFFER: usize = 16 * 1024;

/// After a silence of this length an HTTP/2 peer is pinged.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How long the peer may take to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long an idle HTTP/2 connection may take to close after the GOAWAY.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The instruction of a server to its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Answer and stay.
    Serving,
    /// Answer and tell the client to leave.
    Draining,
    /// Answer the requests that have arrived, and close.
    Closing,
}

/// The protocol settings of connections. Every buffer size is set here, so the memory of a connection is
/// bounded; [`Activity`] sets the timeouts.
pub(super) fn protocol() -> Builder<TokioExecutor> {
    let mut protocol = Builder::new(TokioExecutor::new());
    protocol
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(HTTP1_BUFFER)
        // Pipelined requests are answered one by one. If responses gathered while more requests wait, a
        // client that does not read could pile up any number of them.
        .pipeline_flush(false)
        // A response is copied into the buffer, whose size then bounds its memory.
        .writev(false);
    protocol
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(HTTP2_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW)
        .max_frame_size(HTTP2_FRAME)
        .max_header_list_size(HTTP2_HEAD)
        .max_send_buf_size(HTTP2_SEND_BUFFER)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    protocol
}

/// A connection that was admitted.
pub(super) struct Connection<S> {
    pub(super) stream: S,
    /// Returned when the connection ends.
    pub(super) place: ConnectionPlace,
    pub(super) visitor: Visitor,
    pub(super) activity: Arc<Activity>,
    pub(super) router: Router,
    pub(super) protocol: Arc<Builder<TokioExecutor>>,
    /// Tells the connection what to do, and shows its server that the connection is still open.
    pub(super) stage: watch::Receiver<Stage>,
    pub(super) leaving: Arc<AtomicBool>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection<S> {
    /// Answers requests until one side leaves. Connection errors are not logged: they concern only the
    /// client.
    pub(super) async fn serve(self) {
        let Self { stream, place: _place, visitor, activity, router, protocol, mut stage, leaving } = self;
        let requests = Arc::clone(&activity);
        let answer = service_fn(move |mut request: Request<Incoming>| {
            let under_way = requests.begin(request.version());
            // Before routing, and before a byte of the body is read.
            let answer = match visitor.admit(&mut request) {
                Ok(permit) => {
                    if !permit.is_stranger() {
                        requests.let_in();
                    }
                    Ok((permit, router.clone().call(request)))
                }
                Err(problem) => Err((problem, body::refused(request))),
            };
            let leaving = Arc::clone(&leaving);
            async move {
                let mut response = match answer {
                    Ok((permit, answer)) => {
                        let Ok(response) = answer.await;
                        permit.cover(response)
                    }
                    Err((problem, body)) => {
                        if let Some(body) = body {
                            // Few requests need it, so it takes no room in those that do not.
                            Box::pin(body::discard_refused(body)).await;
                        }
                        problem.into_response()
                    }
                };
                protect(&mut response);
                if leaving.load(Ordering::Relaxed) && !under_way.activity().is_http2() {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(Answer::to(under_way, response))
            }
        });
        let stream = TokioIo::new(Stream::new(stream));
        let mut connection = pin!(protocol.serve_connection(stream, answer));
        let mut look = pin!(sleep_until(Instant::now()));
        let mut told_to_close = false;
        loop {
            tokio::select! {
                biased;
                _ = connection.as_mut() => return,
                () = look.as_mut() => match activity.look() {
                    Decision::Keep(until) => look.as_mut().reset(until),
                    Decision::Idle if activity.is_http2() && !told_to_close => {
                        // A request may be on its way: a GOAWAY makes both sides agree on the last one.
                        connection.as_mut().graceful_shutdown();
                        told_to_close = true;
                        look.as_mut().reset(Instant::now() + CLOSE_TIMEOUT);
                    }
                    Decision::Idle | Decision::Stuck => return,
                },
                () = activity.give_up().notified() => return,
                changed = stage.changed() => {
                    // The server is gone, so the event loop ends soon.
                    if changed.is_err() {
                        return;
                    }
                    let closing = *stage.borrow_and_update() == Stage::Closing;
                    // Hyper closes the connection at once if it is idle or has had no request.
                    if closing || activity.is_http2() {
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }
    }
}

impl Connection<TcpStream> {
    /// Completes the handshake, then answers requests. The handshake counts against the time for the first
    /// request. One that fails is not logged, because strangers can cause any number of them.
    pub(super) async fn serve_securely(mut self, tls: Arc<ServerConfig>) {
        let handshake = timeout(FIRST_REQUEST_TIMEOUT, TlsAcceptor::from(tls).accept(self.stream));
        let completed = tokio::select! {
            completed = handshake => completed,
            () = self.activity.give_up().notified() => return,
            _ = self.stage.wait_for(|stage| *stage == Stage::Closing) => return,
        };
        let Ok(Ok(stream)) = completed else {
            metrics::counter!("catchall_tls_failed_handshakes_total").increment(1);
            return;
        };
        let Self { place, visitor, activity, router, protocol, stage, leaving, .. } = self;
        Connection { stream, place, visitor, activity, router, protocol, stage, leaving }.serve().await;
    }
}

/// Headers that forbid browsers to guess the type of a response, and to run or load anything for it. A page
/// that needs more sets its own. The answer to `HEAD` has the same headers, although its body is gone.
fn protect(response: &mut Response) {
    const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
    const NOTHING: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    let headers = response.headers_mut();
    if headers.contains_key(header::CONTENT_TYPE) {
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(NOTHING);
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::{Access, Admission, Rates};
    use super::super::places::Places;
    use super::*;
    use axum::body::Bytes;
    use axum::routing::{get, put};
    use h2::client::SendRequest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;
    use tokio::time::sleep;

    const LARGE: usize = 1024 * 1024;

    /// A connection that buffers up to `on_the_way` bytes, and the task that serves it.
    fn connect(on_the_way: usize) -> (DuplexStream, JoinHandle<()>) {
        let (theirs, stream) = duplex(on_the_way);
        let router = Router::new()
            .route("/small", put(async || "small"))
            .route("/empty", put(async || ()))
            .route("/large", get(async || vec![b'x'; LARGE]))
            .route("/slow", get(async || sleep(Duration::from_secs(200)).await));
        let served = tokio::spawn(async move {
            let stage = watch::Sender::new(Stage::Serving);
            let access = Arc::new(Access::new(Admission::Everybody, &[], Rates::default(), 1));
            let activity = Activity::new();
            let place = Places::kept(1).take([192, 0, 2, 1].into(), &activity).unwrap();
            let connection = Connection {
                stream,
                place,
                visitor: Visitor::connect(&access, [192, 0, 2, 1].into()).unwrap(),
                activity,
                router,
                protocol: Arc::new(protocol()),
                stage: stage.subscribe(),
                leaving: Arc::default(),
            };
            connection.serve().await;
        });
        (theirs, served)
    }

    /// Seconds until the server ends the connection.
    async fn lasts(served: JoinHandle<()>) -> u64 {
        let begun = Instant::now();
        served.await.unwrap();
        begun.elapsed().as_secs()
    }

    async fn http2(
        stream: DuplexStream,
        window: u32,
    ) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
        let (requests, connection) =
            h2::client::Builder::new().initial_window_size(window).handshake(stream).await.unwrap();
        (requests.ready().await.unwrap(), tokio::spawn(connection))
    }

    fn request(method: &str, path: &str) -> Request<()> {
        let uri = format!("http://localhost{path}");
        Request::builder().method(method).uri(uri).version(axum::http::Version::HTTP_2).body(()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_over_both_versions() {
        let (mut stream, served) = connect(64 * 1024);
        stream.write_all(b"PUT /small HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert!((74..=76).contains(&lasts(served).await));

        let (stream, served) = connect(64 * 1024);
        let (mut requests, connection) = http2(stream, 65_535).await;
        let answer = requests.send_request(request("PUT", "/small"), true).unwrap().0;
        assert_eq!(answer.await.unwrap().status(), 200);
        assert!((74..=76).contains(&lasts(served).await));
        // The server sent a GOAWAY, so the client sees a clean end.
        connection.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_in_use_stays() {
        let (stream, served) = connect(64 * 1024);
        let (mut requests, _connection) = http2(stream, 65_535).await;
        let answer = requests.send_request(request("GET", "/slow"), true).unwrap().0;
        assert_eq!(answer.await.unwrap().status(), 200);
        let mut last = requests.ready().await.unwrap();
        let answer = last.send_request(request("PUT", "/small"), true).unwrap().0;
        assert_eq!(answer.await.unwrap().status(), 200);
        assert!((74..=76).contains(&lasts(served).await));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_of_http2_that_is_gone_without_a_word_is_found() {
        let (stream, served) = connect(64 * 1024);
        let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
        let mut connection = Box::pin(connection);
        let asks = async {
            let asked = requests.send_request(request("GET", "/slow"), true).unwrap();
            sleep(Duration::from_secs(1)).await;
            asked
        };
        let _asked = tokio::select! {
            ended = &mut connection => panic!("{ended:?}"),
            asked = asks => asked,
        };
        // From here on nothing polls the connection, and it stays open.
        assert!((39..=42).contains(&lasts(served).await));
        drop(connection);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_never_reads_is_given_up() {
        let (mut stream, served) = connect(1024);
        stream.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert!(lasts(served).await <= 30);

        // A peer that reads enough to keep the connection alive, but leaves no window for a response.
        for window in [0, 1] {
            let (stream, served) = connect(64 * 1024);
            let (mut requests, _connection) = http2(stream, window).await;
            let _answer = requests.send_request(request("GET", "/large"), true).unwrap().0;
            assert!(lasts(served).await <= 30, "{window}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_slowly_is_given_up_and_one_that_reads_is_not() {
        for (rate, whole) in [(1024, false), (128 * 1024, true)] {
            let (mut stream, _served) = connect(1024);
            stream.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            let mut buffer = vec![0; rate];
            let mut read = 0;
            loop {
                match stream.read(&mut buffer).await {
                    Ok(size) if size > 0 => read += size,
                    _ => break,
                }
                if read > LARGE {
                    break;
                }
                sleep(Duration::from_millis(1000 * 1024 / rate as u64)).await;
            }
            assert_eq!(read > LARGE, whole, "{read}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_pipelines_and_never_reads_piles_nothing_up() {
        for pipelined in
            [&b"PUT /empty HTTP/1.1\r\n\r\n"[..], b"PUT /empty HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"]
        {
            let (mut stream, served) = connect(16 * 1024);
            let writing = async {
                let mut sent = 0;
                // Each response is longer than its request, and has no body, for which hyper would wait.
                while sent < 100_000 && stream.write_all(pipelined).await.is_ok() {
                    sent += 1;
                }
                sent
            };
            let (sent, seconds) = tokio::join!(writing, lasts(served));
            // Only as many as fit into the buffers of both directions.
            assert!(sent < 5000, "{sent}");
            assert!(seconds <= 45, "{seconds}");
        }
    }
}
