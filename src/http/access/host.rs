//! Hosts: the names with which a request addresses this machine.

use std::net::IpAddr;

use axum::http::{Request, Version, header};

/// The name that always means the machine itself, like all names below it (RFC 6761, section 6.3).
const LOCALHOST: &str = "localhost";

/// Whether a request addresses this machine by a name that nobody else can point here.
///
/// Another web page can point its own host name at 127.0.0.1 (DNS rebinding), and its scripts can then read
/// the answers, because browsers go by host names. But browsers also send the name.
pub(super) fn names_this_machine<B>(request: &Request<B>) -> bool {
    let hosts = request.headers().get_all(header::HOST);
    let authority = request.uri().authority();
    if authority.is_none() && hosts.iter().next().is_none() {
        // Only HTTP/1.0 allows this, and no browser speaks that any more.
        return request.version() < Version::HTTP_11;
    }
    authority.is_none_or(|authority| is_this_machine(authority.as_str()))
        && hosts.iter().all(|host| host.to_str().is_ok_and(is_this_machine))
}

/// Whether a host, with or without a port, is `localhost`, a name below it, or a loopback address.
fn is_this_machine(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_number = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_number);
    if !is_port {
        return false;
    }
    if let Ok(address) = name.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    name.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case(LOCALHOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_always_leads_here_is_this_machine() {
        for host in [
            "localhost",
            "LocalHost:8080",
            "localhost.",
            "catchall.localhost:1",
            "127.0.0.1",
            "127.0.0.1:",
            "127.255.0.7:8080",
            "[::1]",
            "[::1]:8080",
            "[::ffff:127.0.0.1]:8080",
        ] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in [
            "",
            ":8080",
            ".",
            "example.com",
            "localhost.example.com",
            "notlocalhost",
            "127.0.0.1.example.com",
            "localhost:x",
            "localhost@example.com",
            "example.com@localhost:1@example.com",
            "192.0.2.1",
            "0.0.0.0:8080",
            "[::]:8080",
            "[::1",
            "[::1]8080",
            "[2001:db8::1]",
            "2130706433",
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn every_name_in_a_request_counts() {
        let request = |uri: &str, version, hosts: &[&str]| {
            let mut request = Request::builder().uri(uri).version(version);
            for host in hosts {
                request = request.header("host", *host);
            }
            names_this_machine(&request.body(()).unwrap())
        };
        for (uri, version, hosts, expected) in [
            ("/", Version::HTTP_10, &[][..], true),
            ("/", Version::HTTP_10, &["evil.example"], false),
            ("/", Version::HTTP_11, &[], false),
            ("/", Version::HTTP_11, &["localhost"], true),
            ("/", Version::HTTP_11, &["localhost", "evil.example"], false),
            ("/", Version::HTTP_11, &["l\u{f6}calhost"], false),
            ("http://evil.example/", Version::HTTP_11, &["localhost"], false),
            ("http://localhost/", Version::HTTP_11, &["localhost"], true),
            ("http://localhost/", Version::HTTP_2, &[], true),
            ("http://evil.example/", Version::HTTP_2, &[], false),
            ("/", Version::HTTP_2, &[], false),
        ] {
            assert_eq!(request(uri, version, hosts), expected, "{uri} {version:?} {hosts:?}");
        }
    }
}
