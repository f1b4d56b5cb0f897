//! Accessibility of the page: contrast, labels and narrow screens.

use std::fs;
use std::path::Path;

use harness::browser::{Browser, Tab};
use harness::system::System;
use serde_json::{Value, json};

use super::with_domains;

/// What axe finds wrong with the page as it is shown.
async fn faults(tab: &Tab<'_>) -> Value {
    let folder = std::env::var("CATCHALL_TEST_AXE").expect("./dev test installs axe");
    let python = fs::read_dir(Path::new(&folder).join("lib")).unwrap().next().unwrap().unwrap().path();
    let script = python.join("site-packages/axe_playwright_python/axe.min.js");
    tab.evaluate(&format!("{};0", fs::read_to_string(script).unwrap())).await;
    let seen = "axe.run().then(found => found.violations.map(fault => [fault.id, fault.help, \
        fault.nodes.map(node => node.html)]))";
    tab.evaluate(seen).await
}

/// Opens the details, and stops each change at the first moment of its animation. True if there is one.
const STOP_ARRIVALS: &str = "document.querySelector('details').open = true; \
    document.querySelectorAll('#changes li').forEach(e => e.className = 'new'); \
    document.getAnimations().map(e => { e.pause(); e.currentTime = 0 }).length > 0";

#[tokio::test]
async fn nobody_is_kept_out_by_colours_by_width_or_by_missing_labels() {
    let (browser, system) = (Browser::start(), System::standalone(&[]).await);
    let (url, tab) = (system.domains().url(), browser.tab().await);
    for filled in [false, true] {
        if filled {
            with_domains(&system).await;
        }
        for path in ["/", "/?domain=example.com", "/?domain=bounces.example.org", "/?domain=localhost"] {
            for (width, scheme) in [(1000, "light"), (1000, "dark"), (320, "light")] {
                tab.look(width, 900, scheme).await;
                tab.open(&format!("{url}{path}")).await;
                tab.shows("#state", "Live").await;
                assert_eq!(tab.evaluate(STOP_ARRIVALS).await, filled);
                assert_eq!(faults(&tab).await, json!([]), "{path} {width} {scheme}");
                let wide = tab.evaluate("document.documentElement.scrollWidth").await;
                assert!(wide.as_u64().unwrap() <= width.into(), "{path} is {wide} wide");
            }
        }
    }
}
