//! Tests of what URLs and errors show.

use super::*;

#[test]
fn only_a_database_on_this_machine_is_spoken_to_without_tls() {
    let mode = |url: &str| url.parse::<PostgresUrl>().unwrap().0.get_ssl_mode();
    for local in ["postgres://localhost/c", "postgres://a:b@127.0.0.1:5433/c", "postgres://[::1]/c"] {
        assert!(matches!(mode(local), PgSslMode::Disable), "{local}");
    }
    assert!(matches!(mode("postgres://localhost/c?sslmode=prefer"), PgSslMode::Prefer));
    assert!(matches!(mode("postgres://localhost/c?sslmode=verify-full"), PgSslMode::VerifyFull));
    assert!(matches!(mode("postgres://db.example.com/c"), PgSslMode::Prefer));
}

#[test]
fn a_url_prints_without_user_and_password() {
    let url: PostgresUrl = "postgres://alice:s3cret@db:5433/catchall?sslmode=require".parse().unwrap();
    assert_eq!(url.to_string(), "postgres://db:5433/catchall");
    assert_eq!(format!("{url:?}"), "postgres://db:5433/catchall");
    for bad in ["mysql://alice:s3cret@db", "postgres://alice:s3cret@db:x/y", "s3cret"] {
        let error = bad.parse::<PostgresUrl>().unwrap_err();
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[test]
fn an_error_keeps_what_the_driver_reported_and_shows_no_more_than_its_sentence() {
    #[derive(Debug, thiserror::Error)]
    #[error("the session is another's")]
    struct Unfit {
        row: &'static str,
    }

    let url: PostgresUrl = "postgres://alice:s3cret@db:5433/catchall".parse().unwrap();
    let error = DatabaseError::of(&url, sqlx::Error::Configuration(Unfit { row: "bob" }.into()));
    assert_eq!(error.to_string(), "postgres://db:5433/catchall: the session is another's");
    let shown = format!("{error:?}");
    assert!(shown.contains("is another's") && !shown.contains("s3cret") && !shown.contains("bob"), "{shown}");
    let reported = error.source().and_then(Error::source).unwrap();
    assert!(matches!(reported.downcast_ref(), Some(sqlx::Error::Configuration(_))), "{reported}");
    assert!(DatabaseError::given_up(&url, ACQUIRE_TIMEOUT).source().is_none());
}
