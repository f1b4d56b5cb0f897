//! A wire that can be cut: a proxy between a service and its server.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Forwards connections while it is up. Cut, it resets every connection and refuses new ones.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    up: watch::Sender<bool>,
}

impl Proxy {
    /// A proxy to `server` (host and port), at first up or cut.
    pub(crate) async fn to(server: &str, begin_up: bool) -> Self {
        let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = reserved.local_addr().unwrap();
        let (up, mut state) = watch::channel(begin_up);
        let server = server.to_owned();
        tokio::spawn(async move {
            let mut listener = Some(reserved);
            loop {
                if !*state.borrow_and_update() {
                    // Without a listener the kernel refuses, as it does where no server runs.
                    drop(listener.take());
                    if state.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                let accepting = match listener.take() {
                    Some(accepting) => accepting,
                    None => TcpListener::bind(address).await.unwrap(),
                };
                tokio::select! {
                    changed = state.changed() => if changed.is_err() { return },
                    accepted = accepting.accept() => {
                        tokio::spawn(forward(accepted.unwrap().0, server.clone(), state.clone()));
                    }
                }
                listener = Some(accepting);
            }
        });
        Self { address, up }
    }

    pub(crate) fn cut(&self) {
        self.up.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.up.send_replace(true);
    }

    /// `url` through the proxy: a URL with a user, and with host and port behind the `@`.
    pub(crate) fn through(&self, url: &str) -> String {
        let (user, rest) = url.split_once('@').expect("a URL with a user");
        let (_, path) = rest.split_once('/').expect("a URL with a path");
        format!("{user}@{}/{path}", self.address)
    }
}

async fn forward(mut client: TcpStream, server: String, mut state: watch::Receiver<bool>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = state.wait_for(|up| !*up) => {}
    }
}

/// Host and port of a URL with a user.
pub(crate) fn host(url: &str) -> &str {
    url.split_once('@').and_then(|(_, rest)| rest.split_once('/')).expect("a URL with a user and a path").0
}
