//! Where an export goes: to a file that appears when it is complete, or directly to a pipe, a device or an
//! open file.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// The most symbolic links that are followed, as in Linux. A longer chain counts as endless.
const MAX_LINKS: usize = 40;

/// The destination of the rows.
pub(super) struct Output {
    writer: BufWriter<File>,
    /// `None` if the rows are written directly to what the path names.
    unfinished: Option<Unfinished>,
}

impl Output {
    /// Opens the destination. A pipe, a device or a file that is already open (`/dev/stdout`) is written to,
    /// not replaced. If the path is a link, the file that it leads to is replaced.
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

    /// Whether the file at the path is replaced once everything is written.
    pub(super) fn is_replaced(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Syncs a complete file to disk, and gives it its name, which is synced too.
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

/// A file that is not complete. Dropping this removes the file, unless it has been given its name.
struct Unfinished {
    path: PathBuf,
    target: PathBuf,
}

impl Unfinished {
    /// Creates one beside `target`, with the mode of the `replaced` file, if there is one.
    fn create(target: PathBuf, replaced: Option<&Metadata>) -> io::Result<(File, Self)> {
        // Another export may be writing under the same name.
        let path = folder(&target).join(format!("catchall-export-{}.new", Uuid::now_v7()));
        let mode = if replaced.is_some() { 0o600 } else { 0o666 };
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        let unfinished = Self { path, target };
        if let Some(replaced) = replaced {
            let mut permissions = replaced.permissions();
            if fchown(&file, None, Some(replaced.gid())).is_err() {
                // The file could not get the old file's group, and no other group may get its permissions.
                permissions.set_mode(permissions.mode() & !0o070);
            }
            // Only root may give the file to another owner.
            let _ = fchown(&file, Some(replaced.uid()), None);
            file.set_permissions(permissions)?;
        }
        Ok((file, unfinished))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // An incomplete file would only take up space. A complete one has been renamed, so it is not found
        // here.
        let _ = fs::remove_file(&self.path);
    }
}

/// The path that links lead to. `None` if it is a file that a process has open: its name may belong to
/// another file by now.
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
    Err(io::Error::other("too many links lead to one another"))
}

/// The folder that a path is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
