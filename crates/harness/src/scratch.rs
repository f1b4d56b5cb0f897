//! Directories for what a test writes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::instance;

/// A directory with a short path that everybody can look into, which goes with this value. The instance's
/// directory may be deep or under the home of one user: a socket's path may have only 107 characters, and
/// servers have users of their own.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// An empty directory.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("catchall-{}", uuid::Uuid::now_v7().simple()));
        fs::create_dir(&path).expect("the directory for temporary files can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        Self(path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of something in it, as text.
    #[must_use]
    pub fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path in UTF-8").to_owned()
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A directory of its own for what a test writes.
///
/// # Panics
///
/// When it cannot be made.
#[must_use]
pub fn directory() -> PathBuf {
    let all = instance::data("tests").expect("./dev says where");
    let directory = all.join(uuid::Uuid::now_v7().to_string());
    std::fs::create_dir_all(&directory).expect("the instance's directory can be written");
    directory
}

/// The path of a data file that does not exist yet, in a directory of its own.
///
/// # Panics
///
/// When the directory cannot be made.
#[must_use]
pub fn data_file() -> PathBuf {
    let directory =
        instance::data("standalone").expect("./dev says where").join(uuid::Uuid::now_v7().to_string());
    std::fs::create_dir_all(&directory).expect("the instance's directory can be written");
    directory.join("catchall.db")
}
