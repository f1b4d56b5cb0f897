//! Whether a commit of the primary is on its disk when it returns. Every acknowledgement to the broker relies
//! on that.

/// Settings of a session, as the session reports them. The server, the role, the database and the URL can
/// each set them, and only the session knows which one applies.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) synchronous_commit: String,
    pub(super) fsync: String,
    pub(super) full_page_writes: String,
}

impl Settings {
    /// Fails if a crash may undo a commit: nothing may be acknowledged after such a commit.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        // Every other value waits at least for the primary's own disk.
        if self.synchronous_commit == "off" {
            return Err(
                "a commit is not on disk when it returns: synchronous_commit is off for the server, this role, \
                 this database or this URL; set it to on",
            );
        }
        if self.fsync == "off" {
            return Err("a commit is not on disk when it returns: fsync is off for the server; set it to on");
        }
        Ok(())
    }

    /// A warning about a setting that is right on some file systems only, which cannot be checked from here.
    pub(super) fn warning(&self) -> Option<&'static str> {
        (self.full_page_writes == "off").then_some(
            "full_page_writes is off: unless the primary's file system never writes half a page, a power cut \
             can destroy what is committed",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(synchronous_commit: &str, fsync: &str, full_page_writes: &str) -> Settings {
        let [synchronous_commit, fsync, full_page_writes] =
            [synchronous_commit, fsync, full_page_writes].map(str::to_owned);
        Settings { synchronous_commit, fsync, full_page_writes }
    }

    #[test]
    fn what_does_not_wait_for_the_disk_is_refused() {
        for waits in ["on", "local", "remote_write", "remote_apply"] {
            assert_eq!(settings(waits, "on", "on").check(), Ok(()), "{waits}");
        }
        assert!(settings("off", "on", "on").check().unwrap_err().contains("synchronous_commit is off"));
        assert!(settings("on", "off", "on").check().unwrap_err().contains("fsync is off"));
    }

    #[test]
    fn what_only_the_operator_can_judge_is_a_warning() {
        assert_eq!(settings("on", "on", "off").check(), Ok(()));
        assert!(settings("on", "on", "off").warning().unwrap().contains("full_page_writes"));
        assert_eq!(settings("on", "on", "on").warning(), None);
    }
}
