//! A browser without a window, driven by the `DevTools` protocol: JSON over two pipes, each message with a zero
//! byte at its end.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::scratch::directory;
use crate::servers::eventually;

/// How long the browser may take to do something, on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(1);

/// It reads commands from descriptor 3 and writes to 4, which a shell gives it: the browser becomes the process
/// that the shell was.
const START: &str = "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>\"$HOME/log\"";

/// It shows only pages of the test, so that it needs no sandbox, which root could not have. It asks nobody for
/// anything, and finds no host but this machine.
const ARGUMENTS: [&str; 12] = [
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-crash-reporter",
    "--no-first-run",
    "--hide-scrollbars",
    "--lang=en-GB",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

/// What the reader of the pipe shares with those who wait.
#[derive(Default)]
struct Heard {
    answers: Mutex<HashMap<u64, oneshot::Sender<Value>>>,
    events: Mutex<Vec<Value>>,
}

/// A running browser with a profile of its own. Dropping it ends the process.
pub struct Browser {
    child: Child,
    commands: Mutex<ChildStdin>,
    heard: Arc<Heard>,
    last: AtomicU64,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Browser {
    /// Starts a browser.
    #[must_use]
    pub fn start() -> Self {
        let home = directory();
        let mut child = Command::new("sh")
            .args(["-c", START, "sh"])
            .args(ARGUMENTS)
            .arg(format!("--user-data-dir={}", home.join("profile").display()))
            .env("HOME", &home)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_CACHE_HOME")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let (commands, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let heard = Arc::new(Heard::default());
        let hears = Arc::clone(&heard);
        std::thread::spawn(move || {
            for message in BufReader::new(answers).split(0).map_while(Result::ok) {
                let message: Value = serde_json::from_slice(&message).expect("the protocol is JSON");
                let Some(id) = message["id"].as_u64() else {
                    hears.events.lock().unwrap().push(message);
                    continue;
                };
                let waiting = hears.answers.lock().unwrap().remove(&id);
                // Nobody may wait by now.
                let _ = waiting.map(|waiting| waiting.send(message));
            }
        });
        Self { child, commands: Mutex::new(commands), heard, last: AtomicU64::new(0) }
    }

    async fn call(&self, session: Option<&str>, method: &str, parameters: Value) -> Value {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, answered) = oneshot::channel();
        self.heard.answers.lock().unwrap().insert(id, answer);
        let mut command = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        let mut text = command.to_string().into_bytes();
        text.push(0);
        self.commands.lock().unwrap().write_all(&text).expect("is chromium installed? ./dev test does that");
        let answer = timeout(TIMEOUT, answered).await;
        let mut answer =
            answer.unwrap_or_else(|_| panic!("no answer to {method}")).expect("the browser runs");
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].take()
    }

    /// Opens a tab that stores nothing and knows nothing of other tabs.
    pub async fn tab(&self) -> Tab<'_> {
        let context = self.call(None, "Target.createBrowserContext", json!({})).await;
        let wanted = json!({"url": "about:blank", "browserContextId": context["browserContextId"]});
        let target = self.call(None, "Target.createTarget", wanted).await;
        let wanted = json!({"targetId": target["targetId"], "flatten": true});
        let session = self.call(None, "Target.attachToTarget", wanted).await;
        let session = session["sessionId"].as_str().expect("a session").to_owned();
        let tab = Tab { browser: self, session };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            tab.call(&format!("{domain}.enable"), json!({})).await;
        }
        tab
    }
}

/// A tab of a browser.
pub struct Tab<'a> {
    browser: &'a Browser,
    session: String,
}

impl Tab<'_> {
    /// Sends a command of the protocol and returns its result.
    pub async fn call(&self, method: &str, parameters: Value) -> Value {
        self.browser.call(Some(&self.session), method, parameters).await
    }

    /// The parameters of all events of a kind so far.
    #[must_use]
    pub fn events(&self, method: &str) -> Vec<Value> {
        let events = self.browser.heard.events.lock().unwrap();
        let own = events.iter().filter(|event| event["sessionId"] == *self.session);
        own.filter(|event| event["method"] == method).map(|event| event["params"].clone()).collect()
    }

    /// Goes to an address, or does what leads to another page, and waits until that is loaded.
    async fn load(&self, method: &str, parameters: Value) {
        let before = self.events("Page.loadEventFired").len();
        self.call(method, parameters).await;
        self.loaded(before).await;
    }

    async fn loaded(&self, before: usize) {
        let loaded = async || (self.events("Page.loadEventFired").len() > before).then_some(());
        eventually("the page is loaded", loaded).await;
    }

    /// Goes to an address and waits until the page is loaded.
    pub async fn open(&self, url: &str) {
        self.load("Page.navigate", json!({"url": url})).await;
    }

    /// The value of an expression on the page.
    pub async fn evaluate(&self, expression: &str) -> Value {
        let wanted = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut done = self.call("Runtime.evaluate", wanted).await;
        assert!(done["exceptionDetails"].is_null(), "{expression}: {done}");
        done["result"]["value"].take()
    }

    /// The text of the first element that a selector finds, as it is rendered.
    pub async fn text(&self, selector: &str) -> String {
        let text = self.evaluate(&format!("document.querySelector({selector:?})?.innerText")).await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the text of an element contains this.
    pub async fn shows(&self, selector: &str, text: &str) {
        let found = async || self.text(selector).await.contains(text).then_some(());
        eventually(&format!("{selector} shows {text:?}"), found).await;
    }

    /// Presses a key that writes nothing.
    pub async fn press(&self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, Value::Null),
            "Enter" => (13, "\r".into()),
            " " => (32, " ".into()),
            key => panic!("no number for {key}"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_null() {
                event["text"] = text.clone();
            }
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    /// Writes into the element that has the focus.
    pub async fn write(&self, text: &str) {
        self.call("Input.insertText", json!({"text": text})).await;
    }

    /// Presses Enter and waits until the page to which that leads is loaded.
    pub async fn submit(&self) {
        let before = self.events("Page.loadEventFired").len();
        self.press("Enter").await;
        self.loaded(before).await;
    }

    /// Shows pages in a window of this size, in the scheme "light" or "dark".
    pub async fn look(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = json!({"name": "prefers-color-scheme", "value": scheme});
        self.call("Emulation.setEmulatedMedia", json!({"features": [scheme]})).await;
    }

    /// Whether pages may run scripts.
    pub async fn without_scripts(&self) {
        self.call("Emulation.setScriptExecutionDisabled", json!({"value": true})).await;
    }

    /// Writes a picture of the window.
    pub async fn picture(&self, file: &Path) {
        let picture = self.call("Page.captureScreenshot", json!({"format": "png"})).await;
        let bytes = BASE64_STANDARD.decode(picture["data"].as_str().expect("a picture")).expect("base64");
        std::fs::write(file, bytes).expect("the file can be written");
    }

    /// What the console has been told so far: by the page, by a fault in its script, by the browser.
    #[must_use]
    pub fn console(&self) -> Vec<String> {
        let of = |method: &str, member: &str| {
            self.events(method).into_iter().map(|event| event[member].to_string()).collect::<Vec<_>>()
        };
        [
            of("Runtime.consoleAPICalled", "args"),
            of("Runtime.exceptionThrown", "exceptionDetails"),
            of("Log.entryAdded", "entry"),
        ]
        .concat()
    }

    /// The addresses of all requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        let sent = self.events("Network.requestWillBeSent");
        sent.iter().filter_map(|event| event["request"]["url"].as_str()).map(str::to_owned).collect()
    }
}
