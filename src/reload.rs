//! Files that are read again when they change, such as tokens and certificates.

use std::error::Error;
use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use std::{fs, io};

use metrics::Gauge;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::cause::Cause;

/// How often the files are read. A change takes effect after at most twice this time, and a bit more for a slow
/// disk.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Largest file that is read: far more than ten thousand tokens or any chain of certificates.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Why files cannot be read or used: a sentence that names the file.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{sentence}")]
pub(crate) struct FileError {
    sentence: String,
    source: Option<Cause>,
}

impl FileError {
    /// What is wrong with the contents of files.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), source: None }
    }

    /// What a library says about `what`.
    pub(crate) fn of(what: impl fmt::Display, error: impl Error + Send + Sync + 'static) -> Self {
        Self { sentence: format!("{what}: {error}"), source: Some(Cause::new(error)) }
    }

    fn unreadable(path: &Path, error: io::Error) -> Self {
        Self::of(format_args!("cannot read {}", path.display()), error)
    }

    /// The same, with the name of the setting that names the files.
    pub(crate) fn of_setting(self, name: &str) -> Self {
        Self { sentence: format!("{name}: {}", self.sentence), ..self }
    }
}

/// The contents of files: each path and its bytes, in the order of the paths. They are not printed, because
/// they may be secret.
#[derive(PartialEq, Eq)]
pub(crate) struct Contents(Vec<(PathBuf, Vec<u8>)>);

impl Contents {
    /// Reads files, and in a directory every file whose name does not begin with a dot.
    fn read(paths: &[PathBuf]) -> Result<Self, FileError> {
        let mut files = Vec::new();
        for path in paths {
            if path.is_dir() {
                files.extend(visible(path).map_err(|error| FileError::unreadable(path, error))?);
            } else {
                files.push(path.clone());
            }
        }
        let files = files.into_iter().map(|path| match read(&path) {
            Ok(bytes) => Ok((path, bytes)),
            Err(error) => Err(FileError::unreadable(&path, error)),
        });
        files.collect::<Result<_, _>>().map(Self)
    }

    /// The contents of a file.
    ///
    /// # Errors
    ///
    /// When it was not read, because it is a directory.
    pub(crate) fn of(&self, path: &Path) -> Result<&[u8], FileError> {
        let found = self.0.iter().find(|(read, _)| read == path);
        let not_a_file = || FileError::new(format!("{} is not a file", path.display()));
        found.map(|(_, bytes)| bytes.as_slice()).ok_or_else(not_a_file)
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

type Make<T> = dyn Fn(&Contents, Option<&T>) -> Result<T, FileError> + Send + Sync;

/// What a look at the files has found.
type FilesRead = Result<Arc<Contents>, FileError>;

/// Whether two looks have found the same. A file may be half written at the first.
fn is_settled(first: &FilesRead, second: &FilesRead) -> bool {
    match (first, second) {
        (Ok(first), Ok(second)) => first == second,
        (Err(first), Err(second)) => first.sentence == second.sentence,
        _ => false,
    }
}

/// A value that is made from files, and made again when they change.
pub(crate) struct Reloaded<T> {
    paths: Vec<PathBuf>,
    make: Box<Make<T>>,
    /// What the value was made from.
    read: Mutex<Arc<Contents>>,
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
        make: impl Fn(&Contents, Option<&T>) -> Result<T, FileError> + Send + Sync + 'static,
    ) -> Result<Self, FileError> {
        let read = Arc::new(Contents::read(&paths)?);
        let value = RwLock::new(Arc::new(make(&read, None)?));
        Ok(Self { paths, make: Box::new(make), read: Mutex::new(read), value })
    }

    /// The latest value.
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at the files, and makes a new value if they have changed and are as the last look has found them.
    /// Returns what it has found and, if it is the same twice, whether there is a new value. Files that cannot
    /// be read or used change nothing.
    fn look(&self, last: Option<&FilesRead>) -> (FilesRead, Option<Result<bool, FileError>>) {
        let look = Contents::read(&self.paths).map(Arc::new);
        let is_settled = last.is_some_and(|last| is_settled(last, &look));
        let made = is_settled.then(|| look.clone().and_then(|read| self.renew(read)));
        (look, made)
    }

    /// Makes a new value if these contents are others than the last; returns whether they are.
    fn renew(&self, read: Arc<Contents>) -> Result<bool, FileError> {
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
    pub(crate) async fn watch(self: Arc<Self>, what: &'static str, stale: Gauge) {
        let (mut last, mut reported) = (None, None);
        stale.set(0);
        loop {
            sleep(CHECK_INTERVAL).await;
            let this = Arc::clone(&self);
            // A disk that hangs must not hold up anything else.
            let looking = spawn_blocking(move || this.look(last.as_ref()));
            // Otherwise the process is ending.
            let Ok((look, made)) = looking.await else { return };
            last = Some(look);
            match made {
                None => {}
                Some(Ok(is_new)) => {
                    if is_new || reported.is_some() {
                        tracing::info!("{what}: reloaded");
                    }
                    stale.set(0);
                    reported = None;
                }
                Some(Err(error)) => {
                    let reason = error.to_string();
                    if reported.as_ref() != Some(&reason) {
                        stale.set(1);
                        tracing::warn!(
                            reason,
                            "{what}: cannot reload, keeping the last valid version: {reason}"
                        );
                        reported = Some(reason);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(contents: &Contents) -> Result<String, FileError> {
        let all: Vec<&str> =
            contents.iter().filter_map(|(_, bytes)| std::str::from_utf8(bytes).ok()).collect();
        let all = all.join("+");
        if all.contains("bad") { Err(FileError::new("it is bad")) } else { Ok(all) }
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
        let missing = load().unwrap_err();
        assert_eq!(
            missing.to_string(),
            format!("cannot read {}: No such file or directory (os error 2)", file.display())
        );
        let cause =
            missing.source().and_then(Error::source).and_then(|error| error.downcast_ref::<io::Error>());
        assert_eq!(cause.map(io::Error::kind), Some(io::ErrorKind::NotFound));
        fs::write(&file, "bad").unwrap();
        assert_eq!(load().unwrap_err().to_string(), "it is bad");
        fs::write(&file, "one").unwrap();
        let value = load().unwrap();
        let reload = || {
            let (look, _) = value.look(None);
            let (_, made) = value.look(Some(&look));
            (made.unwrap().map_err(|error| error.to_string()), value.get().to_string())
        };
        assert_eq!(reload(), (Ok(false), "one".to_owned()));
        fs::write(&file, "two").unwrap();
        assert_eq!(reload(), (Ok(true), "two".to_owned()));
        fs::write(&file, "bad").unwrap();
        assert_eq!(reload(), (Err("it is bad".to_owned()), "two".to_owned()));
        fs::remove_file(&file).unwrap();
        assert!(reload().0.is_err());
        fs::write(&file, "two").unwrap();
        assert_eq!(reload(), (Ok(false), "two".to_owned()));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_is_being_written_changes_nothing() {
        let directory = directory("half");
        let file = directory.join("file");
        fs::write(&file, "one").unwrap();
        let value = Reloaded::load(vec![file.clone()], |contents, _| text(contents)).unwrap();
        let mut last = None;
        let mut look = || {
            let (look, made) = value.look(last.as_ref());
            last = Some(look);
            (made.map(|made| made.unwrap()), value.get().to_string())
        };
        assert_eq!(look(), (None, "one".to_owned()));
        fs::write(&file, "").unwrap();
        assert_eq!(look(), (None, "one".to_owned()));
        fs::write(&file, "one two").unwrap();
        assert_eq!(look(), (None, "one".to_owned()));
        assert_eq!(look(), (Some(true), "one two".to_owned()));
        assert_eq!(look(), (Some(false), "one two".to_owned()));
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
        let (look, _) = value.look(None);
        assert!(value.look(Some(&look)).1.unwrap().unwrap());
        assert_eq!(&**value.get(), "1+2+3");
        fs::remove_dir_all(directory).unwrap();
    }
}
