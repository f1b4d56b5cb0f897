//! Fuzz targets for tokens, token files and headers.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::http::{HeaderValue, Request};

use super::proxies::Proxies;
use super::token_set::TokenSet;
use super::{Access, Admission, Rates, Visitor};
use crate::grant::{Grant, grants};
use crate::reload::{Contents, FileError, Reloaded};
use crate::token::Token;

/// The trusted proxy.
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// A token file is either refused or read to grants that are written back unchanged; and a set of them has
/// each token once.
pub(crate) fn tokens(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.expose(), text);
        assert_eq!(token.digest().to_string().parse(), Ok(token.digest()));
    }
    let read = match grants(text) {
        Ok(read) => read,
        Err(reason) => return assert!(reason.len() < 600 && !reason.contains('\n'), "{reason}"),
    };
    let written: Vec<String> = read.iter().map(Grant::to_string).collect();
    assert_eq!(grants(&written.join("\n")), Ok(read.clone()));
    let count = read.len();
    if let Ok(set) = TokenSet::new(read, Rates::default(), &TokenSet::default()) {
        assert_eq!(set.len(), count);
    }
}

/// If tokens are required, no made-up header lets a request in; and the answer is short and can be sent.
pub(crate) fn authorization(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let make = |_: &Contents, _: Option<&TokenSet>| {
        let line = format!("holder read {} never", Token::from_digits([7; 32]).digest());
        let set = grants(&line).and_then(|read| TokenSet::new(read, Rates::default(), &TokenSet::default()));
        set.map_err(FileError::new)
    };
    let tokens = Reloaded::load(Vec::new(), make).expect("the line is a grant");
    let admission = Admission::Holders(Arc::new(tokens));
    let access = Arc::new(Access::new(admission, &[], Rates::default(), 1));
    let visitor = Visitor::connect(&access, PROXY).expect("it is the first");
    let mut request = Request::new(());
    *request.uri_mut() = "/events".parse().expect("a path");
    request.headers_mut().insert("authorization", value);
    let refused = visitor.check(&mut request).expect_err("nobody may write").to_json();
    assert!(refused.status().is_client_error() && refused.body().len() < 600, "{refused:?}");
}

/// The address of a request is one in the header, or that of the proxy; and never one that comes before an
/// address that is not a proxy's.
pub(crate) fn forwarded_for(data: &[u8]) {
    let proxies = Proxies::new(&[PROXY.to_string().parse().expect("an address")]);
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let mut request = Request::new(());
    request.headers_mut().insert("x-forwarded-for", value.clone());
    let origin = proxies.origin(PROXY, request.headers());
    let text = value.to_str().unwrap_or_default();
    let last = text.rsplit(',').next().unwrap_or_default().trim();
    match last.parse::<IpAddr>() {
        Ok(last) if last.to_canonical() != PROXY => assert_eq!(origin, last.to_canonical()),
        _ => assert_eq!(origin.to_canonical(), origin),
    }
}
