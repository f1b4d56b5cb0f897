//! Files that are read again when they change, such as tokens and certificates.

use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use std::{fs, io};

use metrics::Gauge;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// How often files are compared with their contents when last read. A change takes effect after at most twice
/// this time.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Largest file that is read: far more than ten thousand tokens or any chain of certificates.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The contents of files: each path and its bytes, in the order of the paths. They are not printed, because
/// they may be secret.
#[derive(PartialEq, Eq)]
pub(crate) struct Contents(Vec<(PathBuf, Vec<u8>)>);

impl Contents {
    /// Reads files, and in a directory every file whose name does not begin with a dot.
    fn read(paths: &[PathBuf]) -> Result<Self, String> {
        let mut files = Vec::new();
        for path in paths {
            let failed = |error: io::Error| format!("cannot read {}: {error}", path.display());
            if path.is_dir() {
                files.extend(visible(path).map_err(failed)?);
            } else {
                files.push(path.clone());
            }
        }
        let files = files.into_iter().map(|path| match read(&path) {
            Ok(bytes) => Ok((path, bytes)),
            Err(error) => Err(format!("cannot read {}: {error}", path.display())),
        });
        files.collect::<Result<_, _>>().map(Self)
    }

    /// The contents of a file.
    ///
    /// # Errors
    ///
    /// When it was not read, because it is a directory.
    pub(crate) fn of(&self, path: &Path) -> Result<&[u8], String> {
        let found = self.0.iter().find(|(read, _)| read == path);
        found.map(|(_, bytes)| bytes.as_slice()).ok_or_else(|| format!("{} is not a file", path.display()))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.0.iter().map(|(path, bytes)| (path.as_path(), bytes.as_slice()))
    }
}

fn visible(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    fs::read(path)
}

type Make<T> = dyn Fn(&Contents, Option<&T>) -> Result<T, String> + Send + Sync;

/// A value that is made from files, and made again when they change.
pub(crate) struct Reloaded<T> {
    paths: Vec<PathBuf>,
    make: Box<Make<T>>,
    read: Mutex<Contents>,
    value: RwLock<Arc<T>>,
}

impl<T> Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloaded").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Makes the first value. `make` gets the contents of the files and the previous value.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, and what `make` finds wrong.
    pub(crate) fn load(
        paths: Vec<PathBuf>,
        make: impl Fn(&Contents, Option<&T>) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let read = Contents::read(&paths)?;
        let value = RwLock::new(Arc::new(make(&read, None)?));
        Ok(Self { paths, make: Box::new(make), read: Mutex::new(read), value })
    }

    /// The latest value.
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a new value if a file has changed; returns whether one has. Files that cannot be read or used
    /// change nothing.
    fn reload(&self) -> Result<bool, String> {
        let read = Contents::read(&self.paths)?;
        let mut last = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == read {
            return Ok(false);
        }
        let value = (self.make)(&read, Some(&self.get()))?;
        *self.value.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
        *last = read;
        Ok(true)
    }

    /// Keeps the value current, forever. `what` names it in the log; `stale` is 1 while the files cannot be
    /// used and the previous value is kept.
    ///
    /// A failure is reported when it is found twice in a row: when one of two files that belong together has
    /// been written and the other has not, the first look fails.
    pub(crate) async fn watch(self: Arc<Self>, what: &'static str, stale: Gauge) {
        let mut failed: Option<String> = None;
        let mut reported = None;
        stale.set(0);
        loop {
            sleep(CHECK_INTERVAL).await;
            let this = Arc::clone(&self);
            // A disk that hangs must not hold up anything else.
            match spawn_blocking(move || this.reload()).await {
                Ok(Ok(changed)) => {
                    if changed || reported.is_some() {
                        tracing::info!("{what}: reloaded");
                    }
                    stale.set(0);
                    (failed, reported) = (None, None);
                }
                Ok(Err(reason)) => {
                    if failed.as_ref() == Some(&reason) && reported.as_ref() != Some(&reason) {
                        stale.set(1);
                        tracing::warn!(
                            reason,
                            "{what}: cannot reload, keeping the last valid version: {reason}"
                        );
                        reported = Some(reason.clone());
                    }
                    failed = Some(reason);
                }
                // The process is ending.
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(contents: &Contents) -> Result<String, String> {
        let all: Vec<&str> =
            contents.iter().filter_map(|(_, bytes)| std::str::from_utf8(bytes).ok()).collect();
        let all = all.join("+");
        if all.contains("bad") { Err("it is bad".into()) } else { Ok(all) }
    }

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("catchall-reload-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn what_cannot_be_used_changes_nothing() {
        let directory = directory("changes");
        let file = directory.join("file");
        let paths = vec![file.clone()];
        let load = || Reloaded::load(paths.clone(), |contents, _| text(contents));
        assert!(load().unwrap_err().contains("No such file"));
        fs::write(&file, "bad").unwrap();
        assert_eq!(load().unwrap_err(), "it is bad");
        fs::write(&file, "one").unwrap();
        let value = load().unwrap();
        assert_eq!((value.reload(), &**value.get()), (Ok(false), "one"));
        fs::write(&file, "two").unwrap();
        assert_eq!((value.reload(), &**value.get()), (Ok(true), "two"));
        fs::write(&file, "bad").unwrap();
        assert_eq!((value.reload(), &**value.get()), (Err("it is bad".into()), "two"));
        fs::remove_file(&file).unwrap();
        assert!(value.reload().is_err());
        fs::write(&file, "two").unwrap();
        assert_eq!((value.reload(), &**value.get()), (Ok(false), "two"));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_directory_stands_for_its_visible_files() {
        let directory = directory("visible");
        for (name, content) in [("b", "2"), ("a", "1"), (".hidden", "bad")] {
            fs::write(directory.join(name), content).unwrap();
        }
        fs::create_dir(directory.join("c")).unwrap();
        let value = Reloaded::load(vec![directory.clone()], |contents, _| text(contents)).unwrap();
        assert_eq!(&**value.get(), "1+2");
        fs::write(directory.join("d"), "3").unwrap();
        assert_eq!((value.reload(), &**value.get()), (Ok(true), "1+2+3"));
        fs::remove_dir_all(directory).unwrap();
    }
}
