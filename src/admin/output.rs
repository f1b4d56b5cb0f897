//! Where an export goes: a file that appears when it is complete, or what is open already.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// A longer chain of links has no end: Linux follows as many.
const MAX_LINKS: usize = 40;

/// What rows are written to.
pub(super) struct Output {
    writer: BufWriter<File>,
    /// `None`: it is written straight to what has the name.
    unfinished: Option<Unfinished>,
}

impl Output {
    /// Opens it. A pipe, a device or a file that is open already (`/dev/stdout`) is not replaced but written
    /// to, and a link leads to what is replaced.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let found = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            found => Some(found?),
        };
        let is_file = found.as_ref().is_none_or(Metadata::is_file);
        let target = if is_file { follow(path)? } else { None };
        let (file, unfinished) = match target {
            None => (OpenOptions::new().append(true).open(path)?, None),
            Some(target) => {
                let (file, unfinished) = Unfinished::create(target, found.as_ref())?;
                (file, Some(unfinished))
            }
        };
        Ok(Self { writer: BufWriter::new(file), unfinished })
    }

    /// Whether what has the name is replaced when all is written.
    pub(super) fn is_replaced(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Gives a complete file its name, and makes both last.
    pub(super) fn finish(self) -> io::Result<()> {
        let file = self.writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        let Some(unfinished) = self.unfinished else { return Ok(()) };
        file.sync_all()?;
        fs::rename(&unfinished.path, &unfinished.target)?;
        File::open(folder(&unfinished.target))?.sync_all()
    }
}

impl Write for Output {
    fn write(&mut self, rows: &[u8]) -> io::Result<usize> {
        self.writer.write(rows)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// A file that is not complete. Dropping it removes it, unless it has got its name.
struct Unfinished {
    path: PathBuf,
    target: PathBuf,
}

impl Unfinished {
    /// Creates one beside `target`, with the mode of the file that is `replaced`, if there is one.
    fn create(target: PathBuf, replaced: Option<&Metadata>) -> io::Result<(File, Self)> {
        // Others may write to the same name at this moment.
        let path = folder(&target).join(format!("catchall-export-{}.new", Uuid::now_v7()));
        let mode = if replaced.is_some() { 0o600 } else { 0o666 };
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        let unfinished = Self { path, target };
        if let Some(replaced) = replaced {
            // Only root may leave the file to another owner.
            let _ = fchown(&file, Some(replaced.uid()), Some(replaced.gid()));
            file.set_permissions(replaced.permissions())?;
        }
        Ok((file, unfinished))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // What is left of it would only take room. Once it has got its name, it is not found here.
        let _ = fs::remove_file(&self.path);
    }
}

/// Where links lead to. `None`: to a file that a process has open, whose name may be another's by now.
fn follow(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(link) = fs::read_link(&path) else { return Ok(Some(path)) };
        let folder = folder(&path);
        if folder.canonicalize()?.starts_with("/proc") {
            return Ok(None);
        }
        path = folder.join(link);
    }
    Err(io::Error::other("too many links lead to each other"))
}

/// The folder that a path is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
