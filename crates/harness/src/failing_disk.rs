//! A disk that reports an error when what was written has to reach it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use crate::scratch::Scratch;

/// Takes the place of two functions of the C library, in a process that preloads it. It calls the kernel
/// itself, because a look-up of the original functions could meet this one again.
const LIBRARY: &str = r#"
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static int through(long call, int file) {
  const char *broken = getenv("BROKEN");
  if (broken && access(broken, F_OK) == 0) {
    errno = EIO;
    return -1;
  }
  return (int)syscall(call, file);
}

int fsync(int file) { return through(SYS_fsync, file); }
int fdatasync(int file) { return through(SYS_fdatasync, file); }
"#;

/// A disk that works until it is broken. What a process writes to it arrives in the file either way, as it
/// does on a real one: only whether it would survive a loss of power is not known.
#[derive(Debug, Default)]
pub struct FailingDisk {
    directory: Scratch,
}

impl FailingDisk {
    /// The variables of a process that writes to this disk.
    #[must_use]
    pub fn variables(&self) -> [(&'static str, String); 2] {
        static COMPILED: LazyLock<Scratch> = LazyLock::new(compile);
        [("LD_PRELOAD", COMPILED.at("failing_disk.so")), ("BROKEN", self.directory.at("broken"))]
    }

    /// From now on every `fsync` and `fdatasync` fails.
    pub fn fails(&self) {
        std::fs::write(self.broken(), "").expect("the directory is ours");
    }

    /// From now on it works again.
    pub fn works(&self) {
        std::fs::remove_file(self.broken()).expect("it was broken");
    }

    fn broken(&self) -> PathBuf {
        self.directory.path().join("broken")
    }
}

/// With the compiler that Rust needs for linking, too.
fn compile() -> Scratch {
    let directory = Scratch::new();
    let source = directory.at("failing_disk.c");
    std::fs::write(&source, LIBRARY).expect("the directory is ours");
    let arguments = ["-shared", "-fPIC", "-o", &directory.at("failing_disk.so"), &source];
    let compiled = Command::new("cc").args(arguments).status();
    assert!(compiled.is_ok_and(|status| status.success()), "cc does not compile {source}");
    directory
}
